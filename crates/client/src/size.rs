//! Sizes as BuildKit's clients print them.

/// `105B`, `1.23kB`, `4.50MB`: two digits after the point, decimal units.
pub fn rounded(bytes: i64) -> String {
    format(bytes, |value| format!("{value:.2}"))
}

/// As exact as the number is: `1.234567kB`.
pub fn exact(bytes: i64) -> String {
    format(bytes, |value| value.to_string())
}

/// A digest with as much of it as people compare: `sha256:0123456789ab`.
pub fn short_digest(digest: &str) -> &str {
    const DIGITS: usize = 12;
    let begin = digest.find(':').map_or(0, |colon| colon + 1);
    digest.get(..begin + DIGITS).unwrap_or(digest)
}

fn format(bytes: i64, print: impl Fn(f64) -> String) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    let mut base: u64 = 1;
    while unit + 1 < UNITS.len() && bytes.unsigned_abs() >= base * 1000 {
        base *= 1000;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { print(bytes as f64 / base as f64) + UNITS[unit] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(rounded(0), "0B");
        assert_eq!(rounded(999), "999B");
        assert_eq!(rounded(1000), "1.00kB");
        assert_eq!(rounded(1_234_567), "1.23MB");
        assert_eq!(rounded(-2500), "-2.50kB");
        assert_eq!(exact(1500), "1.5kB");
        assert_eq!(exact(20_000_000_000), "20GB");
        assert_eq!(rounded(i64::MAX), "9.22EB");
    }

    #[test]
    fn digests() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short_digest("sha256:01"), "sha256:01");
        assert_eq!(short_digest(""), "");
    }
}
