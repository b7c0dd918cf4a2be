//! Who may read what, with whose credentials, and for how long.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use castor_registry::{Access, Basic, Client, Error, Fixed, Priority, Token};
use castor_testkit::{Auth, Fault, On, Registry};
use http::Method;
use support::{Session, client, config, impatient, noise, repository};

fn bearer(lifetime: Duration) -> Auth {
    Auth::Bearer { user: Some(("me".into(), "secret".into())), lifetime }
}

async fn registry(auth: Auth) -> Registry {
    Registry::builder().auth(auth).start().await
}

async fn read(client: &Client, registry: &Registry, access: &Access) -> Result<(), Error> {
    let bytes = noise(1000, 3);
    let descriptor = registry.put_blob("private/app", "x/y", bytes.clone());
    let reader = client.blob(&repository(registry, "private/app"), &descriptor, access);
    let body = reader.range(10..500, Priority::OnDemand).await?;
    assert_eq!(body.collect().await?, bytes[10..500]);
    Ok(())
}

#[tokio::test]
async fn basic_authorization() {
    let registry = registry(Auth::Basic { user: "me".into(), password: "secret".into() }).await;
    let client = client();
    let fixed = |secret: &str| Access::new(Arc::new(Fixed(Basic { user: "me".into(), secret: secret.into() })));
    read(&client, &registry, &fixed("secret")).await.unwrap();
    let before = registry.log().len();
    read(&client, &registry, &fixed("secret")).await.unwrap();
    assert_eq!(registry.log().len(), before + 1, "the second time it is sent at once");

    let error = read(&client, &registry, &Access::anonymous()).await.unwrap_err();
    assert!(error.is_auth());
    assert_eq!(
        error.to_string(),
        "pull access denied, repository does not exist or may require authorization: authorization failed: \
         no basic auth credentials"
    );
    let error = read(&self::client(), &registry, &fixed("wrong")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
}

#[tokio::test]
async fn bearer_tokens_are_fetched_once_and_kept() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    let client = client();
    let session = Session::new("s1", "me", "secret");
    for _ in 0..3 {
        read(&client, &registry, &session.access()).await.unwrap();
    }
    assert_eq!(registry.log_of("/token").len(), 1);
    assert_eq!(session.asked(), 1);
    let query = &registry.log_of("/token")[0].query;
    assert!(query.contains("service=testkit") && query.contains("scope=repository%3Aprivate%2Fapp%3Apull"), "{query}");
}

#[tokio::test]
async fn many_readers_ask_for_one_token() {
    let registry = Arc::new(registry(bearer(Duration::from_secs(300))).await);
    let client = client();
    let session = Session::new("s1", "me", "secret");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (client, registry, access) = (client.clone(), Arc::clone(&registry), session.access());
        tasks.spawn(async move { read(&client, &registry, &access).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(registry.log_of("/token").len(), 1);
}

#[tokio::test]
async fn an_anonymous_token_is_enough_where_it_is() {
    let registry = registry(Auth::Bearer { user: None, lifetime: Duration::from_secs(60) }).await;
    read(&client(), &registry, &Access::anonymous()).await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_over_is_renewed_in_mid_read() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    let client = client();
    let session = Session::new("s1", "me", "secret");
    let bytes = noise(900_000, 4);
    let descriptor = registry.put_blob("app", "x/y", bytes.clone());
    registry.fault(On::new(Method::GET, "/blobs/").skip(1).times(1), Fault::Cut(100_000));
    let reader = client.blob(&repository(&registry, "app"), &descriptor, &session.access());
    let mut body = reader.full(Priority::Bulk).await.unwrap();
    let first = body.chunk().await.unwrap().unwrap();
    // Over at the registry although its time has not come.
    registry.expire();
    let rest = body.collect().await.unwrap();
    assert!([&first[..], &rest[..]].concat() == bytes);
    assert_eq!(registry.log_of("/token").len(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_when_its_time_comes_before_it_is_refused() {
    // It is announced to be over soon and is good for long: whatever the machine does meanwhile, it is never refused.
    let builder = Registry::builder().auth(bearer(Duration::from_secs(300))).announce_lifetime(Duration::from_secs(1));
    let registry = builder.start().await;
    let client = client();
    let session = Session::new("s1", "me", "secret");
    while registry.log_of("/token").len() < 2 {
        read(&client, &registry, &session.access()).await.unwrap();
    }
    let refused = registry.log_of("/blobs/").iter().filter(|logged| logged.status == 401).count();
    assert_eq!(refused, 1, "only the first request, which had none: {:?}", registry.log());
}

#[tokio::test]
async fn what_one_session_may_read_another_may_not() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    let client = client();
    read(&client, &registry, &Session::new("s1", "me", "secret").access()).await.unwrap();
    let error = read(&client, &registry, &Session::new("s2", "", "").access()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let want = format!(
        "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to \
         http://{}/token: 401 Unauthorized",
        registry.host()
    );
    assert_eq!(error.to_string(), want);
    let error = read(&client, &registry, &Session::new("s3", "me", "wrong").access()).await.unwrap_err();
    assert!(error.to_string().contains("failed to fetch oauth token"), "{error}");
    assert!(!error.to_string().contains("wrong"), "secrets stay out of messages: {error}");
}

#[tokio::test]
async fn proved_access_outlives_the_session_and_passes_to_the_next() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    let client = client();
    let error = read(&client, &registry, &Access::proved()).await.unwrap_err();
    assert!(error.is_auth(), "nobody has proved anything: {error}");

    let first = Session::new("s1", "me", "secret");
    read(&client, &registry, &first.access()).await.unwrap();
    first.end();
    // Its token is still good.
    read(&client, &registry, &Access::proved()).await.unwrap();
    // And then it is not.
    registry.expire();
    let error = read(&client, &registry, &Access::proved()).await.unwrap_err();
    assert!(error.is_auth(), "{error}");

    let second = Session::new("s2", "me", "secret");
    read(&client, &registry, &second.access()).await.unwrap();
    registry.expire();
    read(&client, &registry, &Access::proved()).await.unwrap();
    assert_eq!(second.asked(), 2, "renewed by the session that is alive");
    assert_eq!(first.asked(), 1);
}

#[tokio::test]
async fn a_session_that_does_not_answer_is_not_waited_for_long() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    let session = Arc::new(Session { hangs: true, ..Arc::into_inner(Session::new("s1", "me", "secret")).unwrap() });
    let client = Client::new(impatient()).unwrap();
    let (one, two) = (session.access(), session.access());
    let (a, b) = tokio::join!(read(&client, &registry, &one), read(&client, &registry, &two));
    let error = a.unwrap_err().to_string();
    assert_eq!(error, format!("failed to authorize: no credentials for {} within 1 s", registry.host()));
    assert!(b.is_err());
}

#[tokio::test]
async fn the_client_may_fetch_the_token_itself() {
    let registry = registry(Auth::Bearer { user: None, lifetime: Duration::from_secs(60) }).await;
    let delegated = Some(Token { token: "of-the-client".into(), expires_in: None });
    let session = Arc::new(Session { delegated, ..Arc::into_inner(Session::new("s1", "", "")).unwrap() });
    // The registry does not know this token; what matters is that it was sent, and that refusals end.
    let error = read(&client(), &registry, &session.access()).await.unwrap_err();
    assert!(
        error.to_string().ends_with("server message: invalid_token: authorization failed"),
        "the registry's reason is passed on: {error}"
    );
    assert_eq!(session.asked(), 0);
    assert!(registry.log_of("/token").is_empty());
    assert!(registry.log_of("/blobs/").iter().skip(1).all(|logged| logged.authorized));
}

#[tokio::test]
async fn a_token_server_that_stumbles_is_asked_again() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    registry.fault(On::new(Method::GET, "/token").times(1), Fault::Status(503, None));
    read(&client(), &registry, &Session::new("s1", "me", "secret").access()).await.unwrap();
    let broken = self::registry(bearer(Duration::from_secs(300))).await;
    broken.fault(On::new(Method::GET, "/token"), Fault::Silence);
    let client = Client::new(impatient()).unwrap();
    let error = read(&client, &broken, &Session::new("s1", "me", "secret").access()).await.unwrap_err();
    assert!(error.to_string().contains("within 1 s"), "{error}");
}

#[tokio::test]
async fn credentials_do_not_leave_the_registry() {
    let builder = Registry::builder().auth(bearer(Duration::from_secs(300))).signed(Duration::from_secs(300));
    let registry = builder.start().await;
    // The storage answers 400 to a request with an Authorization.
    read(&client(), &registry, &Session::new("s1", "me", "secret").access()).await.unwrap();
    let signed = registry.log_of("/signed/");
    assert!(!signed.is_empty() && signed.iter().all(|logged| !logged.authorized), "{signed:?}");

    // Nor do they go to another registry that the first names.
    let other = Registry::start().await;
    let to = format!("http://{}/v2/private/app/blobs/stolen", other.host());
    registry.fault(On::new(Method::GET, "/v2/"), Fault::Redirect(307, to));
    let client = Client::new(config()).unwrap();
    assert!(read(&client, &registry, &Session::new("s1", "me", "secret").access()).await.is_err());
    assert!(!other.log().is_empty() && other.log().iter().all(|logged| !logged.authorized));
}

#[tokio::test]
async fn scopes_are_asked_for_as_they_are_needed() {
    let registry = registry(bearer(Duration::from_secs(300))).await;
    let client = client();
    let session = Session::new("s1", "me", "secret");
    read(&client, &registry, &session.access()).await.unwrap();
    let body = bytes::Bytes::from_static(b"pushed");
    let descriptor = castor_oci::Descriptor::new("x/y", castor_oci::Digest::of(&body), body.len() as u64);
    let target = repository(&registry, "private/app");
    client.push_blob(&target, &descriptor, &[], &body, &session.access()).await.unwrap();
    let scopes: Vec<String> = registry.log_of("/token").into_iter().map(|logged| logged.query).collect();
    assert_eq!(scopes.len(), 2, "{scopes:?}");
    assert!(scopes[1].contains("pull%2Cpush"), "{scopes:?}");
}
