//! Text for people: columns, sizes, times.

/// Lines of cells as columns, three blanks between them. The last column is not padded.
pub fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `text` in at most `length` characters, `…` at its end if something is missing.
pub fn shorten(text: &str, length: usize) -> String {
    match text.chars().count() > length {
        true => text.chars().take(length.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// Bytes as buildctl shows them: `12.35MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{value:.2}{}", UNITS[unit]),
    }
}

/// Milliseconds as `0.4s`.
pub fn seconds(milliseconds: u64) -> String {
    format!("{:.1}s", milliseconds as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let text = align(&[row(&["A", "B", "C"]), row(&["ä-ä", "x", ""]), row(&["", "yy", "last"])]);
        assert_eq!(text, "A     B    C\nä-ä   x\n      yy   last\n");
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 999, 1000, 12_345_678, u64::MAX].map(size), ["0B", "999B", "1.00kB", "12.35MB", "18446.74PB"]);
        assert_eq!((seconds(0), seconds(1250)), ("0.0s".to_owned(), "1.2s".to_owned()));
        assert_eq!((shorten("abcdef", 4), shorten("abcd", 4)), ("abc…".to_owned(), "abcd".to_owned()));
    }
}
