//! What steps are called.

use castor_llb::state::Env;
use castor_oci::Platform;

use super::Converter;
use crate::platform;
use crate::shell::Lexer;

/// The first word in upper case.
pub(super) fn uppercase_first(text: &str) -> String {
    match text.split_once(' ') {
        Some((word, rest)) => format!("{} {rest}", word.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// A command as it is shown: with variables expanded, if they can be.
pub(super) fn expanded(lexer: Lexer, command: &str, env: &Env) -> String {
    lexer.word(command, env).unwrap_or_else(|_| command.to_owned())
}

/// The first line of a document.
pub(super) fn summary(document: &str) -> String {
    let mut lines = document.trim().lines();
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first}...") } else { first.to_owned() }
}

/// The platform that variables say a step compiles for.
fn target_of(env: &Env) -> Option<Platform> {
    let mut found: Option<Platform> = None;
    for (name, value) in env.iter() {
        match name {
            "TARGETPLATFORM" => {
                if let Ok(platform) = platform::parse(value) {
                    return Some(platform);
                }
            }
            "TARGETOS" => value.clone_into(&mut found.get_or_insert_default().os),
            "TARGETARCH" => value.clone_into(&mut found.get_or_insert_default().architecture),
            "TARGETVARIANT" => value.clone_into(&mut found.get_or_insert_default().variant),
            _ => {}
        }
    }
    found
}

/// ` ->arm64` for a step on one platform that compiles for another.
fn arrow(base: &Platform, target: Option<Platform>) -> String {
    let Some(mut target) = target else { return String::new() };
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = platform::normalize(&target);
    if target.os != base.os {
        return format!("->{}", platform::format_all(&target));
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    if target.variant.is_empty() {
        format!("->{}", target.architecture)
    } else {
        format!("->{}/{}", target.architecture, target.variant)
    }
}

impl Converter<'_> {
    /// `[stage n/m] text`; counts the step.
    pub(super) fn prefixed(
        &mut self,
        stage: usize,
        text: &str,
        platform: Option<&Platform>,
        env: Option<&Env>,
    ) -> String {
        let multi_platform = self.options.multi_platform;
        let stage = &mut self.stages[stage];
        if stage.steps == 0 {
            return text.to_owned();
        }
        let mut out = String::from("[");
        if let Some(platform) = platform.filter(|_| multi_platform) {
            out.push_str(&platform::format_all(platform));
            out.push_str(&arrow(platform, env.and_then(target_of)));
            out.push(' ');
        }
        if !stage.label.is_empty() {
            out.push_str(&stage.label);
            out.push(' ');
        }
        stage.step += 1;
        let width = stage.steps.to_string().len();
        out.push_str(&format!("{:>width$}/{}] ", stage.step, stage.steps));
        if stage.in_trigger {
            out.push_str("ONBUILD ");
        }
        out + text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_is_compiled_for() {
        let amd64 = Platform::new("linux", "amd64", "");
        let mut env = Env::default();
        env.set("TARGETARCH", "arm");
        assert_eq!(arrow(&amd64, target_of(&env)), "->arm/v7");
        env.set("TARGETPLATFORM", "windows/amd64");
        assert_eq!(arrow(&amd64, target_of(&env)), "->windows/amd64");
        assert_eq!(arrow(&amd64, target_of(&Env::default())), "");
        assert_eq!(summary("\na\r\nb\n"), "a...");
        assert_eq!(uppercase_first("run a b"), "RUN a b");
    }
}
