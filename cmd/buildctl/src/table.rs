//! Columns, aligned as Go's tabwriter does it: a cell ends with a tab, and consecutive lines that have a cell share its
//! column's width.

/// How columns are padded.
#[derive(Debug, Clone, Copy)]
pub enum Padding {
    /// With tabs, to multiples of eight.
    Tabs,
    /// With blanks.
    Blanks,
}

/// Aligns the cells of `text`.
pub fn align(text: &str, padding: Padding) -> String {
    let (body, last) = match text.strip_suffix('\n') {
        Some(body) => (body, "\n"),
        None => (text, ""),
    };
    let lines: Vec<Vec<&str>> = body.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut writer = Writer { lines: &lines, padding, out: String::with_capacity(text.len() * 2), widths: Vec::new() };
    writer.format(0, lines.len());
    writer.out + last
}

struct Writer<'a> {
    lines: &'a [Vec<&'a str>],
    padding: Padding,
    out: String,
    /// Of the columns that are open.
    widths: Vec<usize>,
}

impl Writer<'_> {
    /// Writes the lines from `from` to `to`, which share the columns that are open.
    fn format(&mut self, mut from: usize, to: usize) {
        let column = self.widths.len();
        let has_cell = |line: &Vec<&str>| column + 1 < line.len();
        let mut line = from;
        while line < to {
            if !has_cell(&self.lines[line]) {
                line += 1;
                continue;
            }
            self.write(from, line);
            let begin = line;
            while line < to && has_cell(&self.lines[line]) {
                line += 1;
            }
            let widest = self.lines[begin..line].iter().map(|line| line[column].chars().count() + 1).max();
            self.widths.push(widest.unwrap_or(1));
            self.format(begin, line);
            self.widths.pop();
            from = line;
        }
        self.write(from, to);
    }

    fn write(&mut self, from: usize, to: usize) {
        for (index, line) in self.lines[from..to].iter().enumerate() {
            for (column, cell) in line.iter().enumerate() {
                self.out.push_str(cell);
                if let Some(&width) = self.widths.get(column) {
                    self.pad(cell.chars().count(), width);
                }
            }
            if from + index + 1 < self.lines.len() {
                self.out.push('\n');
            }
        }
    }

    fn pad(&mut self, text: usize, width: usize) {
        match self.padding {
            Padding::Blanks => self.out.extend(std::iter::repeat_n(' ', width - text)),
            Padding::Tabs => {
                let width = width.next_multiple_of(8);
                self.out.extend(std::iter::repeat_n('\t', (width - text).div_ceil(8)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabs() {
        let text = "ID\tPLATFORMS\nabcdefghijk\tlinux/amd64\n";
        assert_eq!(align(text, Padding::Tabs), "ID\t\tPLATFORMS\nabcdefghijk\tlinux/amd64\n");
        assert_eq!(align("Reclaimable:\t1B\nTotal:\t2B\n", Padding::Tabs), "Reclaimable:\t1B\nTotal:\t\t2B\n");
    }

    #[test]
    fn blanks() {
        assert_eq!(align("A:\tx\nLonger:\ty\n", Padding::Blanks), "A:      x\nLonger: y\n");
    }

    #[test]
    fn a_line_without_cells_ends_a_column() {
        assert_eq!(align("a\tb\n\nlonger-than-8\tc\n", Padding::Tabs), "a\tb\n\nlonger-than-8\tc\n");
        assert_eq!(align("\tk:\tv\n\tlonger:\tw\n", Padding::Blanks), " k:      v\n longer: w\n");
    }
}
