//! Heredocs: `<<WORD`.

use castor_llb::state::Env;

use crate::error::Result;
use crate::shell::Lexer;

/// A document behind an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// The word that ends it, and its file's name.
    pub(crate) name: String,
    /// Variables in it are expanded: no part of the word was quoted.
    pub(crate) expand: bool,
    /// Tabs at the start of lines do not belong to it.
    pub(crate) chomp: bool,
    /// Its text.
    pub(crate) content: String,
}

/// Takes tabs away from the start of every line.
pub(crate) fn trim_leading_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Reads `[fd]<<[-]WORD`; `None` if the text is something else.
pub(crate) fn parse_heredoc(text: &str) -> Result<Option<Heredoc>> {
    let Some(rest) = text.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<") else {
        return Ok(None);
    };
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    // Quotes that are there only in the raw form were around some part of the word.
    let lexer = Lexer::new('\\').skip_unset();
    let words = lexer.words(rest, &Env::default())?;
    let [word] = words.as_slice() else { return Ok(None) };
    let raw = lexer.raw_quotes().words(rest, &Env::default())?;
    let [raw] = raw.as_slice() else { return Ok(None) };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc { name: word.clone(), expand: quotes(word) == quotes(raw), chomp, content: String::new() }))
}

/// The heredocs that a line announces.
pub(super) fn in_line(line: &str) -> Result<Vec<Heredoc>> {
    let lexer = Lexer::new('\\').skip_unset().raw_quotes().raw_escapes();
    // A line that does not lex has no heredocs.
    let words = lexer.words(line, &Env::default()).unwrap_or_default();
    words.iter().filter_map(|word| parse_heredoc(word).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_heredoc_words() {
        let read = |text| parse_heredoc(text).unwrap().map(|doc| (doc.name, doc.expand, doc.chomp));
        assert_eq!(read("<<EOF"), Some(("EOF".into(), true, false)));
        assert_eq!(read("3<<-\"a b\""), Some(("a b".into(), false, true)));
        assert_eq!(read("<<'x'"), Some(("x".into(), false, false)));
        assert_eq!(read("<<<x"), None);
        assert_eq!(read("a<<x"), None);
        assert_eq!(trim_leading_tabs("\t\ta\tb\n\tc"), "a\tb\nc");
    }
}
