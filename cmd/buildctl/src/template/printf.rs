//! `print` and `printf`, as Go's templates have them.

use crate::data::Data;

/// No field is wider; what asks for more is cut to this.
const WIDEST: usize = 1000;

/// The values, with blanks between two of which none is a text.
pub fn print(values: &[Data]) -> String {
    let mut text = String::new();
    for (place, value) in values.iter().enumerate() {
        let is_text = |value: &Data| matches!(value, Data::Text(_));
        if place > 0 && !is_text(value) && !is_text(&values[place - 1]) {
            text.push(' ');
        }
        text.push_str(&value.text());
    }
    text
}

/// A directive: `%-10.3s`
#[derive(Default)]
struct Directive {
    left: bool,
    zero: bool,
    plus: bool,
    width: usize,
    precision: Option<usize>,
}

/// `%v`, `%s`, `%d`, `%q`, `%x`, `%t` and their like, with flags, width and precision; mistakes are shown where they are.
pub fn printf(format: &str, values: &[Data]) -> String {
    let mut text = String::new();
    let mut values = values.iter();
    let mut characters = format.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut directive = Directive::default();
        while let Some(flag) = characters.next_if(|c| matches!(c, '-' | '0' | '+' | ' ' | '#')) {
            match flag {
                '-' => directive.left = true,
                '0' => directive.zero = true,
                '+' => directive.plus = true,
                _ => {}
            }
        }
        let mut number = || {
            let mut number = None;
            while let Some(digit) = characters.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
                number = Some((number.unwrap_or(0) * 10 + digit as usize).min(WIDEST));
            }
            number
        };
        directive.width = number().unwrap_or(0);
        if characters.next_if_eq(&'.').is_some() {
            let mut precision = 0;
            while let Some(digit) = characters.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
                precision = (precision * 10 + digit as usize).min(WIDEST);
            }
            directive.precision = Some(precision);
        }
        match characters.next() {
            None => text.push_str("%!(NOVERB)"),
            Some('%') => text.push('%'),
            Some(verb) => match values.next() {
                None => text.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => text.push_str(&directive.show(verb, value)),
            },
        }
    }
    let extra: Vec<String> = values.map(Data::text).collect();
    if !extra.is_empty() {
        text.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    text
}

impl Directive {
    fn show(&self, verb: char, value: &Data) -> String {
        let text = match (verb, value) {
            ('d' | 'v', Data::Number(number)) | ('d', Data::Name(_, number)) => {
                if self.plus && *number >= 0 {
                    format!("+{number}")
                } else {
                    number.to_string()
                }
            }
            ('v', value) => value.text(),
            ('s', Data::Text(text) | Data::Name(text, _)) => match self.precision {
                Some(precision) => text.chars().take(precision).collect(),
                None => text.clone(),
            },
            ('s', Data::List(_) | Data::Map(_) | Data::Record(_)) => value.text(),
            ('q', Data::Text(text) | Data::Name(text, _)) => Data::from(text).json(),
            ('x', Data::Number(number)) => format!("{number:x}"),
            ('X', Data::Number(number)) => format!("{number:X}"),
            ('o', Data::Number(number)) => format!("{number:o}"),
            ('b', Data::Number(number)) => format!("{number:b}"),
            ('x', Data::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('X', Data::Text(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
            ('t', Data::Bool(value)) => value.to_string(),
            (verb, value) => format!("%!{verb}({})", value.text()),
        };
        let missing = self.width.saturating_sub(text.chars().count());
        if self.left {
            return text + &" ".repeat(missing);
        }
        match (self.zero, text.strip_prefix(['-', '+'])) {
            (true, Some(digits)) => format!("{}{}{digits}", &text[..1], "0".repeat(missing)),
            (true, None) => "0".repeat(missing) + &text,
            (false, _) => " ".repeat(missing) + &text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives() {
        let text = |text: &str| Data::Text(text.to_owned());
        assert_eq!(printf("%s=%d%%", &[text("a"), Data::Number(5)]), "a=5%");
        assert_eq!(printf("[%5s|%-5s|%.2s]", &[text("a"), text("b"), text("cde")]), "[    a|b    |cd]");
        assert_eq!(printf("%05d %+d %x %X", &[7, 7, 255, 255].map(Data::Number)), "00007 +7 ff FF");
        assert_eq!(
            printf("%04d|%v|%t|%q", &[Data::Number(-7), Data::Null, Data::Bool(true), text("a\"b")]),
            "-007|<nil>|true|\"a\\\"b\""
        );
        assert_eq!(printf("%x", &[text("hi")]), "6869");
    }

    #[test]
    fn mistakes_are_shown() {
        let text = Data::Text("a".to_owned());
        assert_eq!(printf("%d", std::slice::from_ref(&text)), "%!d(a)");
        assert_eq!(printf("%s %s", std::slice::from_ref(&text)), "a %!s(MISSING)");
        assert_eq!(printf("x", std::slice::from_ref(&text)), "x%!(EXTRA a)");
        assert_eq!(printf("%", &[]), "%!(NOVERB)");
        assert_eq!(printf("%999999999999d", &[Data::Number(1)]).len(), WIDEST);
    }
}
