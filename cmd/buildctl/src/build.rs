//! `build`

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use castor_client::progress::{Display, Mode};
use castor_client::status::{SolveStatus, go_json};
use castor_client::{BuildOptions, CancellationToken, Client, Keychain, KeychainOptions, Target, definition, new_id};
use tokio::sync::mpsc;

use crate::flags::Values;
use crate::metrics::Metrics;
use crate::options;

/// Messages of progress on their way to the screen.
const IN_FLIGHT: usize = 64;

/// Builds what the flags say.
pub async fn build(target: &Target, values: &Values, cancel: &CancellationToken) -> Result<()> {
    let mut options = options(values)?;
    let mode: Mode = values.text("progress").parse()?;
    let display = Display::new(io::stderr(), mode)?;
    let trace = open_trace(values.text("trace"))?;
    let metrics = Metrics::open(values.text("debug-json-cache-metrics"))?;
    read_definition(&mut options, values)?;

    let client = Client::connect(target, "listing workers for Build: failed to list workers").await?;
    let reference = options.reference.clone();
    let (updates, shown) = mpsc::channel(IN_FLIGHT);
    let drawing = tokio::spawn(draw(display, trace, metrics, shown));
    let built = client.build(options, updates, cancel).await;
    // The last news are on the screen before anything is said about them.
    let drawn = drawing.await.context("draw the progress")?;
    if let Some(metrics) = drawn.metrics {
        metrics.finish()?;
    }
    let ref_file = values.text("ref-file");
    if !ref_file.is_empty() {
        write_whole(Path::new(ref_file), reference.as_bytes())?;
    }
    let built = built?;
    drawn.result?;
    let metadata_file = values.text("metadata-file");
    if !metadata_file.is_empty() && !built.exporter_response.is_empty() {
        write_whole(Path::new(metadata_file), metadata_json(&built.exporter_response)?.as_bytes())?;
    }
    if values.texts("opt").iter().any(|opt| opt.starts_with("requestid=")) {
        print_answer(&built.metadata)?;
    }
    Ok(())
}

fn options(values: &Values) -> Result<BuildOptions> {
    let keychain = KeychainOptions {
        config: docker_config(),
        environment: std::env::var("DOCKER_AUTH_CONFIG").ok().filter(|text| !text.is_empty()),
        tls: options::registry_tls(values.texts("registry-auth-tlscontext"))?,
        no_tokens: std::env::var_os("BUILDKIT_NO_CLIENT_TOKEN").is_some_and(|value| value == "1" || value == "true"),
    };
    options::check_entitlements(values.texts("allow"))?;
    let mut options = BuildOptions {
        reference: new_id(),
        frontend: values.text("frontend").to_owned(),
        definition: None,
        keychain: Some(Keychain::new(keychain)),
        agents: options::agents(values.texts("ssh"))?,
        secrets: options::secrets(values.texts("secret"))?,
        exports: options::outputs(values.texts("output"))?,
        cache_exports: options::cache_exports(values.texts("export-cache"))?,
        cache_imports: options::cache_imports(values.texts("import-cache"))?,
        source_policy: source_policy(values.text("source-policy-file"))?,
        attrs: options::attrs(values.texts("opt"))?,
        locals: options::locals(values.texts("local"))?,
        layouts: options::layouts(values.texts("oci-layout"))?,
        entitlements: values.texts("allow").to_vec(),
        proxy_network: values.bool("proxy-network"),
    };
    if values.bool("no-cache") && !options.frontend.is_empty() {
        options.attrs.insert("no-cache".to_owned(), String::new());
    }
    Ok(options)
}

/// Without a frontend the definition comes from standard input.
fn read_definition(options: &mut BuildOptions, values: &Values) -> Result<()> {
    if !options.frontend.is_empty() {
        return Ok(());
    }
    let mut stdin = io::stdin();
    if stdin.is_terminal() || is_device(&stdin) {
        bail!("please specify --frontend or pipe LLB definition to stdin");
    }
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).context("read standard input")?;
    let mut read = definition::read(&bytes)?;
    if read.def.is_empty() {
        bail!("empty definition sent to build. Specify --frontend instead?");
    }
    if values.bool("no-cache") {
        definition::ignore_cache(&mut read)?;
    }
    options.definition = Some(read);
    Ok(())
}

/// A terminal, `/dev/null` and the like: nothing was piped.
fn is_device(stdin: &io::Stdin) -> bool {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileTypeExt as _;
    let file = stdin.as_fd().try_clone_to_owned().map(std::fs::File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.file_type().is_char_device())
}

fn source_policy(path: &str) -> Result<Option<definition::Policy>> {
    if path.is_empty() {
        return Ok(None);
    }
    let text = std::fs::read(path).with_context(|| format!("open {path}"))?;
    let policy = definition::policy(&text);
    Ok(Some(policy.with_context(|| format!("failed to unmarshal source-policy-file {path:?}"))?))
}

/// Docker's configuration, where it keeps its users' credentials.
fn docker_config() -> Option<std::path::PathBuf> {
    let dir = match std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
        Some(dir) => std::path::PathBuf::from(dir),
        None => std::path::PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(dir.join("config.json"))
}

fn open_trace(path: &str) -> Result<Option<std::fs::File>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if path.is_empty() {
        return Ok(None);
    }
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("open {path}"))?;
    tracing::info!("tracing logs to {path}");
    Ok(Some(file))
}

/// What is left when all is drawn.
struct Drawn {
    result: Result<()>,
    metrics: Option<Metrics>,
}

/// Draws what comes, writes it to the trace and counts it.
async fn draw(
    mut display: Display<io::Stderr>,
    mut trace: Option<std::fs::File>,
    mut metrics: Option<Metrics>,
    mut updates: mpsc::Receiver<SolveStatus>,
) -> Drawn {
    let (forward, drawn) = mpsc::channel(IN_FLIGHT);
    let forwarding = async {
        while let Some(update) = updates.recv().await {
            if let Some(file) = &mut trace {
                writeln!(file, "{}", go_json(&update)?).context("write the trace")?;
            }
            if let Some(metrics) = &mut metrics {
                metrics.update(&update);
            }
            // A display that failed is not told any more; the build goes on.
            let _ = forward.send(update).await;
        }
        drop(forward);
        Ok::<_, anyhow::Error>(())
    };
    let (forwarded, drawn) = tokio::join!(forwarding, display.run(drawn));
    Drawn { result: forwarded.and(drawn.map(drop).context("write the progress")), metrics }
}

/// What exporters said; values that are encoded objects become objects, with their fields in the order they have.
fn metadata_json(response: &BTreeMap<String, String>) -> Result<String> {
    let mut fields = Vec::new();
    for (key, value) in response {
        let value = match decoded(value) {
            Some(object) => object,
            None => serde_json::to_string(value)?,
        };
        fields.push(format!("{}:{value}", serde_json::to_string(key)?));
    }
    let text = indented(&format!("{{{}}}", fields.join(",")));
    // Go's encoder escapes what HTML would take for markup.
    Ok(text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"))
}

fn decoded(value: &str) -> Option<String> {
    let text = String::from_utf8(castor_client::base64(value)?).ok()?;
    let object: serde_json::Value = serde_json::from_str(&text).ok()?;
    object.as_object().filter(|object| !object.is_empty())?;
    Some(text)
}

/// JSON over several lines, two blanks per level.
fn indented(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_text, mut escaped, mut opened) = (0usize, false, false, false);
    for c in json.chars() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(c, '}' | ']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        // Empty ones stay on their line.
        if opened != closes && (opened || closes) {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        }
        opened = false;
        match c {
            '{' | '[' => {
                out.push(c);
                depth += 1;
                opened = true;
            }
            ',' => {
                out.push_str(",\n");
                out.extend(std::iter::repeat_n("  ", depth));
            }
            ':' => out.push_str(": "),
            c => {
                out.push(c);
                in_text = c == '"';
            }
        }
    }
    out
}

/// The answer of a frontend to a request that is no build.
fn print_answer(metadata: &BTreeMap<String, bytes::Bytes>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match metadata.get("result.txt") {
        Some(text) => stdout.write_all(text)?,
        None => {
            for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with("result.")) {
                writeln!(stdout, "{key}")?;
                stdout.write_all(value)?;
                writeln!(stdout)?;
            }
        }
    }
    Ok(())
}

/// Writes a file at once: whoever reads it sees all of it or what was there before.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // There may be none.
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation() {
        assert_eq!(
            indented(r#"{"b":[1,{"x":"a\\\",{"}],"a":{},"c":[ ]}"#),
            "{\n  \"b\": [\n    1,\n    {\n      \"x\": \"a\\\\\\\",{\"\n    }\n  ],\n  \"a\": {},\n  \"c\": []\n}"
        );
    }

    #[test]
    fn metadata() {
        let response = BTreeMap::from([
            ("containerimage.descriptor".to_owned(), "eyJzaXplIjo1fQ==".to_owned()),
            ("containerimage.digest".to_owned(), "sha256:aa".to_owned()),
            ("empty".to_owned(), "e30=".to_owned()),
        ]);
        assert_eq!(
            metadata_json(&response).unwrap(),
            "{\n  \"containerimage.descriptor\": {\n    \"size\": 5\n  },\n  \"containerimage.digest\": \"sha256:aa\",\n  \"empty\": \"e30=\"\n}"
        );
    }
}
