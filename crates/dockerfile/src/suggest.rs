//! “Did you mean …?”

/// Number of characters to insert, delete or replace to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The option nearest to `word`, if one is near; none if `word` is an option itself.
pub(crate) fn search<'a>(
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |text: &str| if case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let wanted = fold(word);
    // Far longer words cannot be near, and comparing them would take long.
    if wanted.len() > 256 {
        return None;
    }
    let mut best = (3, None);
    for option in options {
        let option = fold(option);
        if wanted == option {
            return None;
        }
        let distance = distance(&wanted, &option);
        if distance < best.0 {
            best = (distance, Some(option));
        }
    }
    let found = best.1.filter(|found| !found.is_empty())?;
    if case_sensitive {
        return Some(found);
    }
    Some(if word == word.to_lowercase() {
        found
    } else if word == word.to_uppercase() {
        found.to_uppercase()
    } else {
        found
    })
}

/// ` (did you mean X?)`, or nothing.
pub(crate) fn hint<'a>(word: &str, options: impl IntoIterator<Item = &'a str>, case_sensitive: bool) -> String {
    search(word, options, case_sensitive).map_or_else(String::new, |found| format!(" (did you mean {found}?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_near_and_nothing_else() {
        assert_eq!(hint("mout", ["mount", "network"], true), " (did you mean mount?)");
        assert_eq!(hint("mount", ["mount"], true), "");
        assert_eq!(hint("xyzzy", ["mount"], true), "");
        assert_eq!(hint("COPPY", ["ADD", "COPY"], false), " (did you mean COPY?)");
    }
}
