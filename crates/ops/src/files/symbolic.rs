//! Symbolic modes as chmod(1) has them: `u+rwX,go-w`.

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;
/// What a clause without `u`, `g`, `o`, `a` speaks of.
const ALL: u32 = SET_UID | SET_GID | 0o777;

/// A list of changes to a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbolic(Vec<Change>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set(u32),
    Clear(u32),
    /// Sets bits of directories and of what somebody may execute already.
    SetIfExecutable(u32),
    /// Copies the permissions of a class, given by the position of its bits, to the classes in `who`.
    Copy {
        from: u32,
        who: u32,
        op: char,
    },
}

/// A text that is no mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid syntax")]
pub struct ModeSyntax;

impl Symbolic {
    /// Reads an octal or a symbolic mode.
    pub fn parse(text: &str) -> Result<Self, ModeSyntax> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| ModeSyntax)?;
            if mode & !0o7777 != 0 {
                return Err(ModeSyntax);
            }
            return Ok(Self(vec![Change::Clear(0o7777), Change::Set(mode)]));
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut changes)?;
        }
        Ok(Self(changes))
    }

    /// The changed mode; `mode` is without the file's type.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let executable = is_dir || mode & EXECUTE != 0;
        self.0.iter().fold(mode, |mode, change| match *change {
            Change::Set(bits) => mode | bits,
            Change::Clear(bits) => mode & !bits,
            Change::SetIfExecutable(bits) => {
                if executable {
                    mode | bits
                } else {
                    mode
                }
            }
            Change::Copy { from, who, op } => {
                let bits = (((mode >> from) & 0o7) * EXECUTE) & who;
                match op {
                    '+' => mode | bits,
                    '-' => mode & !bits,
                    _ => mode & !(who & 0o777) | bits,
                }
            }
        })
    }
}

fn parse_clause(clause: &str, changes: &mut Vec<Change>) -> Result<(), ModeSyntax> {
    let operators = clause.find(['+', '-', '=']).ok_or(ModeSyntax)?;
    let mut who = 0;
    for class in clause[..operators].chars() {
        who |= match class {
            'a' => ALL,
            'u' => SET_UID | 0o700,
            'g' => SET_GID | 0o070,
            'o' => 0o007,
            _ => return Err(ModeSyntax),
        };
    }
    let mut rest = &clause[operators..];
    while let Some(op) = rest.chars().next() {
        if !matches!(op, '+' | '-' | '=') {
            return Err(ModeSyntax);
        }
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |position| position + 1);
        parse_permissions(who, op, &rest[1..end], changes)?;
        rest = &rest[end..];
    }
    Ok(())
}

fn parse_permissions(who: u32, op: char, letters: &str, changes: &mut Vec<Change>) -> Result<(), ModeSyntax> {
    // Classes without special bits of their own have none to give.
    let special = who == 0 || who & !0o007 != 0;
    let (mut bits, mut conditional, mut sticky) = (0, 0, 0);
    let mut copies = Vec::new();
    for letter in letters.chars() {
        match letter {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= EXECUTE,
            'X' if op == '-' => bits |= EXECUTE,
            'X' => conditional |= EXECUTE,
            's' if special => bits |= SET_UID | SET_GID,
            't' if special => {
                bits |= STICKY;
                sticky = STICKY;
            }
            's' | 't' => {}
            'u' => copies.push(6),
            'g' => copies.push(3),
            'o' => copies.push(0),
            _ => return Err(ModeSyntax),
        }
    }
    let mask = if who == 0 { ALL | STICKY } else { who | sticky };
    // A copied class replaces by itself.
    if op == '=' && (copies.is_empty() || bits != 0) {
        changes.push(Change::Clear(if who == 0 { ALL | sticky } else { mask }));
    }
    match op {
        '-' if bits & mask != 0 => changes.push(Change::Clear(bits & mask)),
        '+' | '=' if bits & mask != 0 => changes.push(Change::Set(bits & mask)),
        _ => {}
    }
    if conditional & mask != 0 {
        changes.push(Change::SetIfExecutable(conditional & mask));
    }
    let replaced = op == '=' && bits != 0;
    for from in copies {
        let op = if replaced { '+' } else { op };
        changes.push(Change::Copy { from, who: mask & 0o777, op });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_modes_as_chmod_does() {
        for (text, mode, is_dir, want) in [
            ("755", 0o644, false, 0o755),
            ("u+x", 0o644, false, 0o744),
            ("go-w", 0o666, false, 0o644),
            ("a=r", 0o7755, false, 0o1444),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("+x", 0o600, false, 0o711),
            ("g=u", 0o640, false, 0o660),
            ("go=u-w", 0o740, false, 0o755),
            ("u+s,g+s,+t", 0o755, false, 0o7755),
            ("go=", 0o777, false, 0o700),
            ("o+s", 0o755, false, 0o755),
            ("a+X", 0o644, false, 0o644),
            ("1777", 0o755, true, 0o1777),
            ("u-X", 0o755, false, 0o655),
        ] {
            let mode = Symbolic::parse(text).unwrap().apply(mode, is_dir);
            assert_eq!(format!("{mode:o}"), format!("{want:o}"), "{text}");
        }
    }

    #[test]
    fn refuses_other_texts() {
        for text in ["", "u", "888", "17777", "u+q", "z+x", ",u+x", "u+x,"] {
            assert_eq!(Symbolic::parse(text), Err(ModeSyntax), "{text}");
        }
    }
}
