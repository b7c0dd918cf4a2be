//! Sizes, resource limits and signals as users write them.

use castor_llb::op::Ulimit;

use crate::gofmt::parse_int;

/// Bytes from a text such as `64m` or `1.5 GiB`.
pub(crate) fn bytes(text: &str) -> Option<i64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, suffix) = match text.as_bytes()[end] {
        b' ' => (&text[..end], &text[end + 1..]),
        _ => text.split_at(end + 1),
    };
    let number: f64 = number.parse().ok().filter(|number: &f64| *number >= 0.0)?;
    let suffix = suffix.to_lowercase();
    let scale = match suffix.as_bytes() {
        [] | [b'b'] => 0,
        [unit] | [unit, b'b'] | [unit, b'i', b'b'] => {
            1 + "kmgtp".find(char::from(*unit)).and_then(|power| u32::try_from(power).ok())?
        }
        _ => return None,
    };
    // Go converts the same way and truncates.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    Some((number * (1_u64 << (10 * scale)) as f64) as i64)
}

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A resource limit from `name=soft[:hard]`.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let Some((name, values)) = text.split_once('=') else {
        return Err(format!("invalid ulimit argument: {text}"));
    };
    if !ULIMITS.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let parts: Vec<&str> = values.split(':').collect();
    let (soft, hard) = match parts.as_slice() {
        [soft] => {
            let soft = parse_int(soft, 64)?;
            (soft, soft)
        }
        [soft, hard] => {
            let hard = parse_int(hard, 64)?;
            (parse_int(soft, 64)?, hard)
        }
        _ => {
            return Err(format!("too many limit value arguments - {values}, can only have up to two, `soft[:hard]`"));
        }
    };
    let order = "ulimit soft limit must be less than or equal to hard limit";
    if hard != -1 && soft == -1 {
        return Err(format!("{order}: soft: -1 (unlimited), hard: {hard}"));
    }
    if hard != -1 && soft > hard {
        return Err(format!("{order}: {soft} > {hard}"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

const SIGNALS: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether a text names a signal, by number or name.
pub(crate) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |sign: &str, base: &str| {
        name.strip_prefix(base).and_then(|rest| rest.strip_prefix(sign)).and_then(|n| n.parse::<u32>().ok())
    };
    SIGNALS.contains(&name)
        || offset("+", "RTMIN").is_some_and(|n| (1..=15).contains(&n))
        || offset("-", "RTMAX").is_some_and(|n| (1..=14).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_limits_and_signals() {
        for (text, want) in
            [("1", Some(1)), ("64m", Some(64 << 20)), ("1.5 GiB", Some(3 << 29)), ("2kb", Some(2048)), ("5b", Some(5))]
        {
            assert_eq!(bytes(text), want, "{text}");
        }
        for text in ["", "m", "1x", "-1", "1kbb", "1ki", "1bb"] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(ulimit("nofile=64:128").unwrap(), Ulimit { name: "nofile".into(), soft: 64, hard: 128 });
        for text in ["nofile", "x=1", "nofile=2:1", "nofile=-1:5", "nofile=1:2:3", "nofile=a"] {
            assert!(ulimit(text).is_err(), "{text}");
        }
        assert!(is_signal("SIGTERM") && is_signal("quit") && is_signal("9") && is_signal("RTMIN+3"));
        assert!(!is_signal("0") && !is_signal("SIGNOPE") && !is_signal("RTMIN+16"));
    }
}
