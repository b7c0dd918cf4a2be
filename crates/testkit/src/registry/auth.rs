//! Who may ask.

use std::time::Instant;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Response, StatusCode};

use super::serve::{error, json};
use super::{Auth, Issued, State};

impl State {
    /// Lets the request pass, or says what to answer it with.
    pub(super) fn authorize(&self, method: &Method, repo: &str, headers: &HeaderMap) -> Result<(), Response<Bytes>> {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let challenge = match &self.settings.auth {
            Auth::None => return Ok(()),
            Auth::Basic { user, password } => {
                if basic(given).is_some_and(|(u, p)| u == *user && p == *password) {
                    return Ok(());
                }
                "Basic realm=\"testkit\"".to_owned()
            }
            Auth::Bearer { .. } => {
                let action = if matches!(*method, Method::GET | Method::HEAD) { "pull" } else { "push" };
                let content = self.content.lock();
                let issued = given.strip_prefix("Bearer ").and_then(|token| content.tokens.get(token));
                let alive = issued.filter(|issued| issued.until > Instant::now());
                if alive.is_some_and(|issued| repo.is_empty() || allows(&issued.scopes, repo, action)) {
                    return Ok(());
                }
                let actions = if action == "pull" { "pull" } else { "pull,push" };
                let problem = match (alive.is_some(), given.is_empty()) {
                    (true, _) => ",error=\"insufficient_scope\"",
                    (false, false) => ",error=\"invalid_token\"",
                    (false, true) => "",
                };
                format!(
                    "Bearer realm=\"http://{}/token\",service=\"testkit\",scope=\"repository:{repo}:{actions}\"{problem}",
                    self.addr
                )
            }
        };
        let mut answer = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().unwrap());
        Err(answer)
    }

    /// The token server.
    pub(super) fn token(&self, query: &[(String, String)], headers: &HeaderMap) -> Response<Bytes> {
        let Auth::Bearer { user, lifetime } = &self.settings.auth else {
            return error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no token server");
        };
        if let Some((name, password)) = user {
            let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if basic(given).is_none_or(|(u, p)| u != *name || p != *password) {
                return error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "incorrect username or password");
            }
        }
        let scopes = query.iter().filter(|(key, _)| key == "scope");
        let scopes = scopes.flat_map(|(_, value)| value.split(' ')).map(str::to_owned).collect();
        let token = format!("token-{}", self.number());
        let issued = Issued { until: Instant::now() + *lifetime, scopes };
        self.content.lock().tokens.insert(token.clone(), issued);
        let announced = self.settings.announced.unwrap_or(*lifetime).as_secs().max(1);
        json(StatusCode::OK, &serde_json::json!({ "token": token, "expires_in": announced }))
    }
}

fn allows(scopes: &[String], repo: &str, action: &str) -> bool {
    scopes.iter().any(|scope| {
        scope
            .strip_prefix("repository:")
            .and_then(|rest| rest.rsplit_once(':'))
            .is_some_and(|(name, actions)| name == repo && actions.split(',').any(|a| a == action))
    })
}

fn basic(header: &str) -> Option<(String, String)> {
    let bytes = decode_base64(header.strip_prefix("Basic ")?)?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bits = 0_u32;
    let mut count = 0;
    let mut out = Vec::new();
    for byte in text.bytes().take_while(|byte| *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(out)
}
