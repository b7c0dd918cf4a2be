//! How the program says what went wrong.

use std::io::{self, Write as _};

use castor_client::{ClientError, Source, source};

/// Writes to standard output.
pub fn show(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Whoever read the output has seen enough: that needs no words.
fn is_closed_pipe(err: &anyhow::Error) -> bool {
    err.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|err| err.kind() == io::ErrorKind::BrokenPipe)
}

/// Says it, after the lines of the user's text that it is about.
pub fn report(err: &anyhow::Error, debug: bool) {
    if is_closed_pipe(err) {
        return;
    }
    let failure = err.downcast_ref::<ClientError>().and_then(ClientError::failure);
    let mut stderr = io::stderr().lock();
    // Where errors cannot be written there is nobody to tell.
    for detail in failure.map(|failure| failure.details::<Source>()).unwrap_or_default() {
        let _ = source::print_excerpt(&detail, &mut stderr);
    }
    let _ = writeln!(stderr, "error: {}", text(err));
    if debug {
        for cause in err.chain().skip(1) {
            let _ = writeln!(stderr, "  {cause}");
        }
    }
}

/// The error with its causes, each once, and the system's errors in the words of other tools.
fn text(err: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in err.chain() {
        let words = cause.to_string();
        if !text.contains(&words) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &words;
        }
    }
    for cause in err.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()) {
        text = text.replace(&cause.to_string(), &castor_client::system_words(cause));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn causes_are_said_once() {
        let missing = io::Error::from_raw_os_error(2);
        let err = anyhow::Error::new(missing).context("open x").context("read the trace");
        assert_eq!(text(&err), "read the trace: open x: no such file or directory");
        let inner: Result<(), _> =
            Err(ClientError::Local { what: "draw".into(), source: io::Error::from_raw_os_error(32) });
        assert_eq!(text(&inner.context("outer").unwrap_err()), "outer: draw: broken pipe");
    }
}
