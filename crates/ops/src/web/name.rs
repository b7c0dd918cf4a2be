//! What a file is called, and when it was modified.

use castor_llb::HttpSource;
use reqwest::Url;

/// The name of a file that has none.
const UNNAMED: &str = "download";

/// The last part of `text`, if that can be the name of a file.
pub(super) fn safe_name(text: &str) -> String {
    let trimmed = text.trim().trim_end_matches('/');
    let base = trimmed.rsplit('/').next().unwrap_or_default();
    if base.is_empty() || base == "." || base == ".." || base.chars().any(char::is_control) {
        return UNNAMED.to_owned();
    }
    base.to_owned()
}

/// The name of a file: the one asked for, else the server's, else that of its URL.
pub(super) fn of(source: &HttpSource, url: &Url, disposition: &str) -> String {
    if !source.filename.is_empty() {
        return safe_name(&source.filename);
    }
    if let Some(name) = parameter(disposition, "filename").filter(|name| !name.is_empty() && !name.ends_with('/')) {
        return safe_name(&name);
    }
    let path = url.path().trim_end_matches('/');
    let base = path.rsplit('/').next().unwrap_or_default();
    safe_name(&unescape(base))
}

/// A parameter of a header such as `attachment; filename="a.txt"`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (name, value) = rest.split_once('=')?;
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            None => {
                let end = value.find(';').unwrap_or(value.len());
                (value[..end].trim().to_owned(), &value[end..])
            }
            Some(quoted) => {
                let (mut text, mut end, mut escaped) = (String::new(), quoted.len(), false);
                for (at, c) in quoted.char_indices() {
                    match c {
                        _ if escaped => {
                            text.push(c);
                            escaped = false;
                        }
                        '\\' => escaped = true,
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        c => text.push(c),
                    }
                }
                (text, quoted.get(end..).unwrap_or_default())
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Seconds since 1970 of a date in a header, in any of the three forms that servers use. The second form names a zone;
/// whatever it is, servers mean UTC.
pub(super) fn date(text: &str) -> Option<i64> {
    let second = text.rsplit_once(' ').filter(|(_, zone)| (3..=5).contains(&zone.len()) && is_upper(zone));
    let forms = [
        (text, "%a, %d %b %Y %H:%M:%S GMT"),
        (second.map_or(text, |(rest, _)| rest), "%A, %d-%b-%y %H:%M:%S"),
        (text, "%a %b %e %H:%M:%S %Y"),
    ];
    forms.iter().find_map(|(text, form)| {
        let time = jiff::civil::DateTime::strptime(form, text).ok()?;
        Some(jiff::tz::Offset::UTC.to_timestamp(time).ok()?.as_second())
    })
}

fn is_upper(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_uppercase())
}

/// The date as headers have it.
pub(crate) fn show_date(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_attribute_server_and_url_in_that_order() {
        let of = |filename: &str, url: &str, disposition: &str| {
            let source = HttpSource { filename: filename.into(), ..HttpSource::default() };
            of(&source, &url.parse().unwrap(), disposition)
        };
        assert_eq!(of("a/b", "http://h/c", "attachment; filename=d"), "b");
        assert_eq!(of("", "http://h/c", "attachment; x=1; filename=\"d \\\"e.txt\"; y=2"), "d \"e.txt");
        assert_eq!(of("", "http://h/c", "attachment; filename=/etc/../../passwd"), "passwd");
        assert_eq!(of("", "http://h/c%20d/", "inline"), "c d");
        assert_eq!(of("", "http://h/", "attachment; filename=\"x/\""), "download");
        assert_eq!(of("", "http://h/a%2f..%2f..", ""), "download");
    }

    #[test]
    fn unusable_names_are_replaced() {
        for (text, want) in
            [("..", "download"), ("a\nb", "download"), (" x ", "x"), ("../", "download"), ("", "download")]
        {
            assert_eq!(safe_name(text), want, "{text:?}");
        }
    }

    #[test]
    fn dates_of_three_forms_are_read() {
        for text in [
            "Tue, 14 Nov 2023 22:13:20 GMT",
            "Tuesday, 14-Nov-23 22:13:20 GMT",
            "Tuesday, 14-Nov-23 22:13:20 UTC",
            "Tue Nov 14 22:13:20 2023",
        ] {
            assert_eq!(date(text), Some(1_700_000_000), "{text}");
        }
        assert_eq!(show_date(1_700_000_000).unwrap(), "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(date("yesterday"), None);
    }
}
