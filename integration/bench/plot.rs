//! The table as bars.

use std::fmt::Write as _;

use crate::report::{Report, Who};

const WIDTH: f64 = 860.0;
/// Where the bars begin, and how long the longest is.
const LEFT: f64 = 150.0;
const LONGEST: f64 = 620.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 26.0;
const GAP: f64 = 14.0;

fn colour(who: Who) -> &'static str {
    match who {
        Who::Lazy => "#1f6f8b",
        Who::Eager => "#8fbcc9",
        Who::Floor => "#9a9a9a",
        Who::RealLazy => "#c8553d",
        Who::RealEager => "#e3b5a4",
    }
}

/// An SVG image: a group of bars for each row, each group on a scale of its own.
pub fn bars(report: &Report) -> String {
    let mut body = String::new();
    let mut y = GAP;
    for line in &report.lines {
        let _ = writeln!(body, "<text x=\"8\" y=\"{:.0}\" class=\"head\">{}</text>", y + 16.0, escape(line.name));
        y += HEAD;
        let bars: Vec<(Who, f64)> = Who::ALL.into_iter().filter_map(|who| Some((who, line.seconds(who)?))).collect();
        let most = bars.iter().map(|(_, seconds)| *seconds).fold(f64::EPSILON, f64::max);
        for (who, seconds) in bars {
            let length = (seconds / most * LONGEST).max(1.0);
            let base = y + 12.0;
            let _ = writeln!(
                body,
                "<text x=\"8\" y=\"{base:.0}\">{}</text><rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{length:.1}\" \
                 height=\"{:.0}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{base:.0}\">{seconds:.2} s</text>",
                who.name(),
                BAR - 2.0,
                colour(who),
                LEFT + length + 6.0,
            );
            y += BAR;
        }
        y += GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" viewBox=\"0 0 {WIDTH} {y:.0}\">\n\
         <style>text{{font:12px sans-serif;fill:#222}}.head{{font-weight:bold}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
