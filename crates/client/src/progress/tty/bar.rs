//! How much of a piece of work is done, as a bar and as numbers.

use crate::size;

/// The width of `12.35MB / 139.92MB`.
const NUMBERS: usize = 19;

/// The width of `12.35MB/s`.
const SPEED: usize = 10;

/// Seconds in which the mark of a bar without an end goes there and back.
const PERIOD: f64 = 3.0;

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Amount {
    /// Bytes done.
    pub current: i64,
    /// Bytes in all; 0 if nobody knows.
    pub total: i64,
    /// Bytes per second.
    pub rate: Option<i64>,
    /// Of a hundred parts, where the part is what matters.
    pub share: Option<i64>,
    /// For how long it has gone on.
    pub seconds: f64,
}

impl Amount {
    /// `12.35MB / 139.92MB (8%)`
    pub fn text(&self) -> String {
        let numbers = self.numbers();
        match self.share {
            Some(share) => format!("{numbers} ({share}%)"),
            None => numbers,
        }
    }

    fn numbers(&self) -> String {
        match (self.current, self.total) {
            (0, 0) => String::new(),
            (current, 0) => size::rounded(current),
            (current, total) => format!("{} / {}", size::rounded(current), size::rounded(total)),
        }
    }

    /// A bar, the numbers, and the share or the rate, in the same cells on each line of a terminal this wide; `None` on
    /// one that is too narrow.
    pub fn columns(&self, columns: usize) -> Option<String> {
        let cells = match columns {
            ..75 => return None,
            75..100 => 8,
            100..120 => 16,
            _ => 28,
        };
        let numbers = match self.total {
            0 => format!("{:>8}", size::rounded(self.current)),
            total => format!("{:>8} / {}", size::rounded(self.current), size::rounded(total)),
        };
        let speed = match (self.share, self.rate) {
            (Some(share), _) => format!("{share}%"),
            (None, Some(rate)) => format!("{}/s", size::rounded(rate)),
            (None, None) => String::new(),
        };
        Some(format!(" [{}] {numbers:<NUMBERS$} {speed:>SPEED$}", self.bar(cells)))
    }

    /// `====>   `, or `  <=>   ` where there is no telling how much is left.
    fn bar(&self, cells: usize) -> String {
        if self.total <= 0 {
            const MARK: &str = "<=>";
            let way = cells - MARK.len();
            let place = (self.seconds / PERIOD).fract() * 2.0;
            let left = ((if place <= 1.0 { place } else { 2.0 - place }) * way as f64).round() as usize;
            return format!("{:left$}{MARK}{:right$}", "", "", right = way - left.min(way));
        }
        let done = (self.current.clamp(0, self.total) as f64 / self.total as f64 * cells as f64) as usize;
        let head = if done < cells { ">" } else { "" };
        format!("{:=<done$}{head:<rest$}", "", rest = cells - done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(current: i64, total: i64) -> Amount {
        Amount { current, total, rate: None, share: None, seconds: 0.0 }
    }

    #[test]
    fn bars() {
        assert_eq!(amount(0, 100).bar(8), ">       ");
        assert_eq!(amount(50, 100).bar(8), "====>   ");
        assert_eq!(amount(99, 100).bar(8), "=======>");
        assert_eq!(amount(100, 100).bar(8), "========");
        assert_eq!(amount(200, 100).bar(8), "========");
        assert_eq!(amount(-5, 100).bar(8), ">       ");
        let moving = |seconds| Amount { seconds, ..amount(5, 0) }.bar(8);
        assert_eq!((moving(0.0), moving(1.5), moving(3.0)), ("<=>     ".into(), "     <=>".into(), "<=>     ".into()));
        assert_eq!(moving(0.75).len(), 8);
    }

    #[test]
    fn numbers() {
        assert_eq!(amount(0, 0).text(), "");
        assert_eq!(amount(1500, 0).text(), "1.50kB");
        assert_eq!(Amount { share: Some(8), ..amount(12_350_000, 139_920_000) }.text(), "12.35MB / 139.92MB (8%)");
    }

    #[test]
    fn columns_are_aligned() {
        let lines = [
            Amount { rate: Some(5_120_000), ..amount(1_000_000, 139_920_000) },
            Amount { share: Some(100), ..amount(139_920_000, 139_920_000) },
            amount(12, 0),
        ];
        for columns in [75, 100, 200] {
            let widths: Vec<usize> = lines.iter().map(|line| line.columns(columns).unwrap().len()).collect();
            assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
        }
        assert_eq!(lines[0].columns(79).unwrap(), " [>       ]   1.00MB / 139.92MB   5.12MB/s");
        assert_eq!(lines[0].columns(60), None);
    }
}
