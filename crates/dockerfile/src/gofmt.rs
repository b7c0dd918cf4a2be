//! Texts as Go prints them: quoted strings, lists, durations. Users see them in messages and histories.

use std::fmt::Write as _;

/// `%q`.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if printable(c) => out.push(c),
            c if (c as u32) < 0x80 => drop(write!(out, "\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => drop(write!(out, "\\u{:04x}", c as u32)),
            c => drop(write!(out, "\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

/// Near enough to Go's `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space.
fn printable(c: char) -> bool {
    use std::sync::LazyLock;
    // The pattern is a constant.
    static PRINTABLE: LazyLock<Option<regex::Regex>> =
        LazyLock::new(|| regex::Regex::new(r"^[\p{L}\p{M}\p{N}\p{P}\p{S}]$").ok());
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    PRINTABLE.as_ref().is_some_and(|pattern| pattern.is_match(c.encode_utf8(&mut [0; 4])))
}

/// `%q` of a list.
pub(crate) fn quote_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%v` of a list.
pub(crate) fn list(list: &[String]) -> String {
    format!("[{}]", list.join(" "))
}

/// `%v` of a `time.Duration`.
pub(crate) fn duration(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        return "0s".into();
    }
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let digits = unit.ilog10() as usize;
        let text = format!("{:0digits$}", value % unit);
        let text = text.trim_end_matches('0');
        let whole = value / unit;
        if text.is_empty() { whole.to_string() } else { format!("{whole}.{text}") }
    };
    if total < 1_000 {
        return format!("{sign}{total}ns");
    }
    if total < 1_000_000 {
        return format!("{sign}{}µs", fraction(total, 1_000));
    }
    if total < 1_000_000_000 {
        return format!("{sign}{}ms", fraction(total, 1_000_000));
    }
    let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
    let seconds = fraction(rest, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// Reads what `time.ParseDuration` reads; the error is its text.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(rest);
        let (number, mut after) = rest.split_at(whole);
        let mut fraction = "";
        if let Some(behind) = after.strip_prefix('.') {
            let count = digits(behind);
            (fraction, after) = behind.split_at(count);
        }
        if number.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {} in duration {}", quote(unit), quote(text))),
        };
        let number: u128 = if number.is_empty() { 0 } else { number.parse().map_err(|_| invalid())? };
        total = number.checked_mul(scale).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        // Beyond eighteen digits nothing is left of a nanosecond.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let value: u128 = fraction.parse().map_err(|_| invalid())?;
            total += value * scale / 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        }
        rest = next;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

/// What `strconv.ParseBool` accepts.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `strconv.ParseInt(text, 10, bits)`; the error is its text.
pub(crate) fn parse_int(text: &str, bits: u32) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = i128::try_from(digits_value("ParseInt", text, digits, bits)?).unwrap_or(i128::MAX);
    let value = if negative { -value } else { value };
    let limit = 1_i128 << (bits - 1);
    match i64::try_from(value) {
        Ok(number) if (-limit..limit).contains(&value) => Ok(number),
        _ => Err(out_of_range("ParseInt", text)),
    }
}

/// `strconv.ParseUint(text, 10, 64)`; the error is its text.
pub(crate) fn parse_uint(text: &str) -> Result<u64, String> {
    let value = digits_value("ParseUint", text, text, 64)?;
    u64::try_from(value).map_err(|_| out_of_range("ParseUint", text))
}

/// Reads digits one by one: what is too large is that before a later character is no digit.
fn digits_value(function: &str, text: &str, digits: &str, bits: u32) -> Result<u128, String> {
    let invalid = || format!("strconv.{function}: parsing {}: invalid syntax", quote(text));
    if digits.is_empty() {
        return Err(invalid());
    }
    let mut value = 0_u128;
    for c in digits.chars() {
        value = value * 10 + u128::from(c.to_digit(10).ok_or_else(invalid)?);
        if value >= 1 << bits {
            return Err(out_of_range(function, text));
        }
    }
    Ok(value)
}

fn out_of_range(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: value out of range", quote(text))
}

/// One line of comma-separated values; the error is that of Go's reader.
pub(crate) fn csv(line: &str) -> Result<Vec<String>, String> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err("EOF".into());
    }
    let error = |at: usize, what: &str| Err(format!("parse error on line 1, column {}: {what}", at + 1));
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let rest = &line[at..];
        let Some(quoted) = rest.strip_prefix('"') else {
            let field = rest.split(',').next().unwrap_or(rest);
            if let Some(position) = field.find('"') {
                return error(at + position, "bare \" in non-quoted-field");
            }
            fields.push(field.to_owned());
            at += field.len() + 1;
            if at > line.len() {
                return Ok(fields);
            }
            continue;
        };
        at += 1;
        let mut field = String::new();
        let mut rest = quoted;
        loop {
            let Some(end) = rest.find('"') else { return error(at, "extraneous or missing \" in quoted-field") };
            field.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            at += end + 1;
            match rest.chars().next() {
                Some('"') => {
                    field.push('"');
                    rest = &rest[1..];
                    at += 1;
                }
                Some(',') => {
                    at += 1;
                    fields.push(field);
                    break;
                }
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(_) => return error(at - 1, "extraneous or missing \" in quoted-field"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (300_000_000_000, "5m0s"),
            (1_500_000_000, "1.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (1_000_000, "1ms"),
            (1_500, "1.5µs"),
            (90_061_000_000_000, "25h1m1s"),
        ] {
            assert_eq!(duration(nanoseconds), text);
            assert_eq!(parse_duration(text), Ok(nanoseconds), "{text}");
        }
        assert_eq!(parse_duration("abc").unwrap_err(), "time: invalid duration \"abc\"");
        assert_eq!(parse_duration("5").unwrap_err(), "time: missing unit in duration \"5\"");
        assert_eq!(parse_duration("5x").unwrap_err(), "time: unknown unit \"x\" in duration \"5x\"");
        assert_eq!(parse_duration(".5s"), Ok(500_000_000));
    }

    #[test]
    fn quotes_as_go_does() {
        assert_eq!(quote("a\"b\\\u{1}\n é\u{a0}"), "\"a\\\"b\\\\\\x01\\n é\\u00a0\"");
        assert_eq!(quote_list(&["a b".into(), "c".into()]), "[\"a b\" \"c\"]");
    }

    #[test]
    fn reads_values_separated_by_commas() {
        let read = |text: &str| csv(text);
        assert_eq!(read("a,b=c,").unwrap(), ["a", "b=c", ""]);
        assert_eq!(read("\"a,\"\"b\"\"\",c").unwrap(), ["a,\"b\"", "c"]);
        assert_eq!(read("").unwrap_err(), "EOF");
        assert_eq!(read("a\"b").unwrap_err(), "parse error on line 1, column 2: bare \" in non-quoted-field");
        assert!(read("\"a").is_err());
        assert!(read("\"a\"b").is_err());
    }

    #[test]
    fn number_errors_are_gos() {
        assert_eq!(parse_int("-5x", 64).unwrap_err(), "strconv.ParseInt: parsing \"-5x\": invalid syntax");
        assert_eq!(
            parse_int("99999999999", 32).unwrap_err(),
            "strconv.ParseInt: parsing \"99999999999\": value out of range"
        );
        assert_eq!(parse_int("-2147483648", 32), Ok(-2_147_483_648));
    }
}
