//! The colours of lines: `NO_COLOR` takes them away, `BUILDKIT_COLORS` changes them.

use std::ffi::OsStr;

/// Ends a colour.
const RESET: &str = "\x1b[0m";

/// What is printed before a line of a kind; nothing where there are no colours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Colours {
    /// Steps and work that are done.
    pub run: String,
    /// Cancelled steps.
    pub cancel: String,
    /// Warnings.
    pub warning: String,
    /// Steps that failed.
    pub error: String,
    /// What steps print.
    pub output: String,
}

/// The codes of the colours that have names.
const NAMES: [(&str, u8); 17] = [
    ("default", 39),
    ("black", 30),
    ("blue", 34),
    ("cyan", 36),
    ("green", 32),
    ("magenta", 35),
    ("red", 31),
    ("white", 37),
    ("yellow", 33),
    ("light-black", 90),
    ("light-blue", 94),
    ("light-cyan", 96),
    ("light-green", 92),
    ("light-magenta", 95),
    ("light-red", 91),
    ("light-white", 97),
    ("light-yellow", 93),
];

impl Default for Colours {
    fn default() -> Self {
        let code = |code: u8| format!("\x1b[{code}m");
        Self { run: code(34), cancel: code(33), warning: code(33), error: code(31), output: code(2) }
    }
}

impl Colours {
    /// No colours at all.
    pub fn none() -> Self {
        let none = String::new;
        Self { run: none(), cancel: none(), warning: none(), error: none(), output: none() }
    }

    /// As the values of `NO_COLOR` and `BUILDKIT_COLORS` have it. What cannot be understood of the latter is said in the
    /// log, and left out.
    pub fn of(no_color: Option<&OsStr>, colours: Option<&OsStr>) -> Self {
        if no_color.is_some_and(|value| !value.is_empty()) {
            return Self::none();
        }
        let mut all = Self::default();
        let text = colours.map(OsStr::to_string_lossy).unwrap_or_default();
        for part in text.split(':').filter(|part| !part.is_empty()) {
            if let Err(reason) = all.set(part) {
                tracing::warn!("BUILDKIT_COLORS: {part}: {reason}");
            }
        }
        all
    }

    /// `run=blue`, `error=120,0,0`
    fn set(&mut self, part: &str) -> Result<(), &'static str> {
        let (key, value) = part.split_once('=').ok_or("it is not of the form kind=colour")?;
        let (key, value) = (key.to_lowercase(), value.to_lowercase());
        let code = match NAMES.iter().find(|(name, _)| *name == value) {
            Some((_, code)) => format!("\x1b[{code}m"),
            None => format!("\x1b[38;5;{}m", cube(&value)?),
        };
        match key.as_str() {
            "run" => self.run = code,
            "cancel" => self.cancel = code,
            "warning" => self.warning = code,
            "error" => self.error = code,
            _ => return Err("kinds are run, cancel, warning and error"),
        }
        Ok(())
    }

    /// The line in a colour.
    pub fn paint(colour: &str, line: &str) -> String {
        if colour.is_empty() { line.to_owned() } else { format!("{colour}{line}{RESET}") }
    }
}

/// The place in the cube of 216 colours that is nearest to `red,green,blue` of 0 to 255.
fn cube(value: &str) -> Result<u8, &'static str> {
    const WRONG: &str = "colours are names, or three numbers from 0 to 255";
    let parts: Vec<u8> =
        value.split(',').map(|part| part.trim().parse()).collect::<Result<_, _>>().map_err(|_| WRONG)?;
    match parts[..] {
        [red, green, blue] => Ok(16 + 36 * (red / 43) + 6 * (green / 43) + blue / 43),
        _ => Err(WRONG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides() {
        let of = |no_color: Option<&str>, colours: Option<&str>| {
            Colours::of(no_color.map(OsStr::new), colours.map(OsStr::new))
        };
        assert_eq!(of(None, None), Colours::default());
        assert_eq!(of(Some(""), None), Colours::default());
        assert_eq!(of(Some("1"), Some("run=red")), Colours::none());
        let chosen = of(None, Some("run=light-green:ERROR=Magenta:cancel=255,0,0:warning=0,0,255"));
        assert_eq!(chosen.run, "\x1b[92m");
        assert_eq!(chosen.error, "\x1b[35m");
        assert_eq!(chosen.cancel, "\x1b[38;5;196m");
        assert_eq!(chosen.warning, "\x1b[38;5;21m");
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        for text in ["run", "run=mauve", "run=1,2", "run=1,2,256", "walk=red", "::", "run=red=blue"] {
            assert_eq!(Colours::of(None, Some(OsStr::new(text))), Colours::default(), "{text}");
        }
    }

    #[test]
    fn painting() {
        assert_eq!(Colours::paint("", "x"), "x");
        assert_eq!(Colours::paint("\x1b[2m", "x"), "\x1b[2mx\x1b[0m");
    }
}
