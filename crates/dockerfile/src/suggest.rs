//! “Did you mean …?”

/// What is further away than this is not near.
const FAR: usize = 3;

/// Number of characters to insert, delete or replace to make `b` of `a`, if it is less than [`FAR`]. Only that
/// close to the diagonal is looked at, so that long words of a hostile file cost no more than short ones.
fn distance(a: &[char], b: &str) -> Option<usize> {
    let b: Vec<char> = b.chars().take(a.len() + FAR).collect();
    if a.len().abs_diff(b.len()) >= FAR {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).map(|j| if j < FAR { j } else { FAR }).collect();
    for (i, x) in a.iter().enumerate() {
        let (first, last) = ((i + 1).saturating_sub(FAR).max(1), (i + FAR).min(b.len()));
        let mut diagonal = row[first - 1];
        row[first - 1] = if first == 1 { i + 1 } else { FAR };
        for j in first..=last {
            let replace = diagonal + usize::from(*x != b[j - 1]);
            diagonal = row[j];
            let above = if j == last && last < b.len() { FAR } else { row[j] };
            row[j] = replace.min(row[j - 1] + 1).min(above + 1);
        }
    }
    Some(row[b.len()]).filter(|&distance| distance < FAR)
}

/// The option nearest to `word`, if one is near; none if `word` is an option itself.
pub(crate) fn search<'a>(
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |text: &str| if case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let wanted = fold(word);
    let characters: Vec<char> = wanted.chars().collect();
    let mut best = (FAR, None);
    for option in options {
        let option = fold(option);
        if wanted == option {
            return None;
        }
        if let Some(distance) = distance(&characters, &option)
            && distance < best.0
        {
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
    fn distances_are_those_of_the_whole_table() {
        let whole = |a: &[char], b: &[char]| {
            let mut row: Vec<usize> = (0..=b.len()).collect();
            for (i, x) in a.iter().enumerate() {
                let mut diagonal = std::mem::replace(&mut row[0], i + 1);
                for (j, y) in b.iter().enumerate() {
                    let replace = diagonal + usize::from(x != y);
                    diagonal = row[j + 1];
                    row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
                }
            }
            row[b.len()]
        };
        // All words of up to five letters of an alphabet of two.
        let words: Vec<Vec<char>> = (0..=5_u32)
            .flat_map(|n| {
                (0..1_u32 << n).map(move |bits| (0..n).map(|i| if bits >> i & 1 == 1 { 'a' } else { 'b' }).collect())
            })
            .collect();
        for a in &words {
            for b in &words {
                let want = Some(whole(a, b)).filter(|&distance| distance < FAR);
                assert_eq!(distance(a, &b.iter().collect::<String>()), want, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn finds_what_is_near_and_nothing_else() {
        assert_eq!(hint("mout", ["mount", "network"], true), " (did you mean mount?)");
        assert_eq!(hint("mount", ["mount"], true), "");
        assert_eq!(hint("xyzzy", ["mount"], true), "");
        assert_eq!(hint("COPPY", ["ADD", "COPY"], false), " (did you mean COPY?)");
    }
}
