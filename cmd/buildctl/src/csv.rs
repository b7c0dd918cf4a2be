//! One line of comma-separated values, as in `--output type=local,dest=out`.

use std::collections::BTreeMap;

/// A text that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    #[error("parse error on line 1, column {0}: bare \" in non-quoted-field")]
    BareQuote(usize),
    #[error("parse error on line 1, column {0}: extraneous or missing \" in quoted-field")]
    Quote(usize),
    #[error("EOF")]
    Empty,
}

/// The fields of a line.
pub fn fields(line: &str) -> Result<Vec<String>, CsvError> {
    if line.is_empty() {
        return Err(CsvError::Empty);
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let column = line.len() - rest.len() + 1;
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, next) = match rest.split_once(',') {
                Some((field, next)) => (field, Some(next)),
                None => (rest, None),
            };
            if let Some(place) = field.find('"') {
                return Err(CsvError::BareQuote(column + place));
            }
            fields.push(field.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let Some((text, after)) = quoted.split_once('"') else { return Err(CsvError::Quote(line.len())) };
            field.push_str(text);
            match after.chars().next() {
                Some('"') => {
                    field.push('"');
                    quoted = &after[1..];
                }
                Some(',') => {
                    rest = &after[1..];
                    break;
                }
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(_) => return Err(CsvError::Quote(line.len() - after.len())),
            }
        }
        fields.push(field);
    }
}

/// The `key=value` fields of a line, with keys in lower case; a field without `=` is the error.
pub fn pairs(line: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for field in fields(line)? {
        let Some((key, value)) = field.split_once('=') else { anyhow::bail!("invalid value {field}") };
        pairs.insert(key.to_lowercase(), value.to_owned());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(fields("type=image,name=a").unwrap(), ["type=image", "name=a"]);
        assert_eq!(fields("\"name=a,b\",\"q=\"\"x\"\"\",").unwrap(), ["name=a,b", "q=\"x\"", ""]);
        assert_eq!(fields("a\"b").unwrap_err(), CsvError::BareQuote(2));
        assert!(matches!(fields("\"a"), Err(CsvError::Quote(_))));
        assert!(matches!(fields("\"a\"b,c"), Err(CsvError::Quote(_))));
        assert_eq!(fields(""), Err(CsvError::Empty));
    }
}
