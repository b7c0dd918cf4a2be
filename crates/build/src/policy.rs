//! Source policies: rules of a client that allow, deny or convert what a build brings in.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use castor_llb::Definition;
use castor_oci::{Digest, Reference};
use castor_proto::pb;
use castor_proto::sourcepolicy::{self as wire, AttrMatch, MatchType, PolicyAction};
use prost::Message as _;
use regex::Regex;

/// How often one source may be converted.
const MAX_CONVERSIONS: usize = 20;
/// Rules of one build.
const MAX_RULES: usize = 10_000;
/// Size of one expression, compiled.
const MAX_EXPRESSION: usize = 1 << 20;

/// What a policy has against a source, or what is wrong with the policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A rule says no.
    #[error("source {0:?} denied by policy: source denied by policy")]
    Denied(String),
    /// Conversions lead to conversions.
    #[error("too many mutations on a single source: too many operations")]
    TooMany,
    /// A rule without its selector.
    #[error("invalid nil selector in policy")]
    NoSelector,
    /// A conversion to nothing.
    #[error("error mutating source policy: missing destination for convert rule")]
    NoDestination,
    /// A number that stands for nothing.
    #[error("source policy: rule for {identifier:?}: unknown {what} {number}")]
    Unknown {
        /// The rule's identifier.
        identifier: String,
        /// What is unknown.
        what: &'static str,
        /// Its number.
        number: i32,
    },
    /// No expression, or no wildcard.
    #[error("error matching source policy: {text:?}: {reason}")]
    Pattern {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More rules than anybody has.
    #[error("source policy: more than {MAX_RULES} rules")]
    TooManyRules,
    /// An op that is none; the definition is refused for it elsewhere.
    #[error("failed to parse llb proto op: {0}")]
    Op(String),
}

/// The rules of a build, in order; the last one that matches decides.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    action: PolicyAction,
    identifier: String,
    /// How other identifiers match; none but the very same where there is nothing.
    pattern: Option<Regex>,
    constraints: Vec<Constraint>,
    updates: Option<wire::Update>,
}

#[derive(Debug, Clone)]
struct Constraint {
    key: String,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Policy {
    /// Reads a policy.
    pub fn new(policy: wire::Policy) -> Result<Self, PolicyError> {
        if policy.rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules);
        }
        Ok(Self { rules: policy.rules.into_iter().map(Rule::new).collect::<Result<_, _>>()? })
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Judges a source; whether it was converted.
    pub fn judge(&self, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
        if self.is_empty() {
            return Ok(false);
        }
        normalize(source);
        for conversions in 0..=MAX_CONVERSIONS {
            if !self.judge_once(source)? {
                return Ok(conversions > 0);
            }
        }
        Err(PolicyError::TooMany)
    }

    fn judge_once(&self, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
        let mut denied = false;
        for rule in &self.rules {
            if !rule.matches(source) {
                continue;
            }
            match rule.action {
                PolicyAction::Allow => denied = false,
                PolicyAction::Deny => denied = true,
                PolicyAction::Convert => {
                    if rule.convert(source)? {
                        return Ok(true);
                    }
                }
            }
        }
        if denied { Err(PolicyError::Denied(source.identifier.clone())) } else { Ok(false) }
    }

    /// A definition whose sources are judged, and converted where a rule says so.
    pub fn apply(&self, definition: Definition) -> Result<Definition, PolicyError> {
        if self.is_empty() {
            return Ok(definition);
        }
        // Inputs come before what needs them, so a renamed input is known when it is met.
        let mut renamed: HashMap<String, String> = HashMap::new();
        let mut ops: Vec<Bytes> = Vec::with_capacity(definition.ops.len());
        for bytes in &definition.ops {
            let mut op = pb::Op::decode(bytes.clone()).map_err(|error| PolicyError::Op(error.to_string()))?;
            let mut changed = false;
            if let Some(pb::op::Op::Source(source)) = &mut op.op {
                changed = self.judge(source)?;
            }
            for input in &mut op.inputs {
                if let Some(new) = renamed.get(&input.digest) {
                    input.digest.clone_from(new);
                    changed = true;
                }
            }
            if !changed {
                ops.push(bytes.clone());
                continue;
            }
            let new = Bytes::from(op.encode_to_vec());
            renamed.insert(Digest::of(bytes).to_string(), Digest::of(&new).to_string());
            ops.push(new);
        }
        if renamed.is_empty() {
            return Ok(definition);
        }
        let name = |digest: Digest| {
            let new = renamed.get(&digest.to_string()).and_then(|new| new.parse().ok());
            new.unwrap_or(digest)
        };
        let metadata = definition.metadata.into_iter().map(|(digest, metadata)| (name(digest), metadata)).collect();
        let source = definition.source.map(|mut source| {
            let places: BTreeMap<String, pb::Locations> = std::mem::take(&mut source.locations);
            let rename = |(digest, places)| (renamed.get(&digest).cloned().unwrap_or(digest), places);
            source.locations = places.into_iter().map(rename).collect();
            source
        });
        Ok(Definition { ops, metadata, source })
    }
}

impl Rule {
    fn new(rule: wire::Rule) -> Result<Self, PolicyError> {
        let selector = rule.selector.ok_or(PolicyError::NoSelector)?;
        let identifier = selector.identifier;
        let unknown = |what, number| PolicyError::Unknown { identifier: identifier.clone(), what, number };
        let action = PolicyAction::try_from(rule.action).map_err(|_| unknown("action", rule.action))?;
        let kind = MatchType::try_from(selector.match_type).map_err(|_| unknown("match type", selector.match_type))?;
        let pattern = match kind {
            MatchType::Exact => None,
            MatchType::Regex => Some(expression(&identifier, &identifier)?),
            MatchType::Wildcard => Some(wildcard(&identifier)?),
        };
        let constraints = selector
            .constraints
            .into_iter()
            .map(|constraint| {
                let condition = constraint.condition;
                let test = match AttrMatch::try_from(condition).map_err(|_| unknown("attr condition", condition))? {
                    AttrMatch::Equal => Test::Equal(constraint.value),
                    AttrMatch::Notequal => Test::NotEqual(constraint.value),
                    AttrMatch::Matches => Test::Matches(expression(&constraint.value, &constraint.value)?),
                };
                Ok(Constraint { key: constraint.key, test })
            })
            .collect::<Result<_, PolicyError>>()?;
        Ok(Self { action, identifier, pattern, constraints, updates: rule.updates })
    }

    fn matches(&self, source: &pb::SourceOp) -> bool {
        let holds = |constraint: &Constraint| {
            let value = source.attrs.get(&constraint.key).map_or("", String::as_str);
            match &constraint.test {
                Test::Equal(want) => value == want,
                Test::NotEqual(want) => value != want,
                Test::Matches(pattern) => pattern.is_match(value),
            }
        };
        let same = self.identifier == source.identifier;
        self.constraints.iter().all(holds)
            && (same || self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(&source.identifier)))
    }

    /// Converts a source that matches; whether anything became different.
    fn convert(&self, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
        let updates = self.updates.as_ref().ok_or(PolicyError::NoDestination)?;
        let wanted = if updates.identifier.is_empty() { &self.identifier } else { &updates.identifier };
        let identifier = match &self.pattern {
            None => wanted.clone(),
            // Groups of the match stand in the destination as `$1` or `${1}`.
            Some(pattern) => pattern.replace_all(&source.identifier, wanted.as_str()).into_owned(),
        };
        let mut changed = false;
        if !identifier.is_empty() && source.identifier != identifier {
            source.identifier = identifier;
            changed = true;
        }
        for (key, value) in &updates.attrs {
            if source.attrs.get(key) != Some(value) {
                source.attrs.insert(key.clone(), value.clone());
                changed = true;
            }
        }
        Ok(changed)
    }
}

/// Images are judged by their full name.
fn normalize(source: &mut pb::SourceOp) {
    const IMAGE: &str = "docker-image://";
    let reference = source.identifier.strip_prefix(IMAGE).and_then(|text| text.parse::<Reference>().ok());
    if let Some(reference) = reference {
        source.identifier = format!("{IMAGE}{reference}");
    }
}

fn expression(pattern: &str, shown: &str) -> Result<Regex, PolicyError> {
    let built = regex::RegexBuilder::new(pattern).size_limit(MAX_EXPRESSION).build();
    built.map_err(|error| PolicyError::Pattern { text: shown.to_owned(), reason: error.to_string() })
}

/// `*` stands for anything, and is a group.
fn wildcard(text: &str) -> Result<Regex, PolicyError> {
    if text.contains("**") {
        let reason = "invalid wildcard: \"**\"".to_owned();
        return Err(PolicyError::Pattern { text: text.to_owned(), reason });
    }
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    expression(&format!("^{}$", parts.join("(.*)")), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_llb::{Graph, Limits};

    fn rule(action: PolicyAction, kind: MatchType, identifier: &str, to: Option<&str>) -> wire::Rule {
        wire::Rule {
            action: action.into(),
            selector: Some(wire::Selector {
                identifier: identifier.into(),
                match_type: kind.into(),
                constraints: Vec::new(),
            }),
            updates: to.map(|to| wire::Update { identifier: to.into(), ..wire::Update::default() }),
        }
    }

    fn policy(rules: Vec<wire::Rule>) -> Policy {
        Policy::new(wire::Policy { version: 1, rules }).unwrap()
    }

    fn judged(policy: &Policy, identifier: &str) -> Result<String, PolicyError> {
        let mut source = pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() };
        policy.judge(&mut source).map(|_| source.identifier)
    }

    const GOLANG: &str = "docker-image://docker.io/library/golang";

    #[test]
    fn the_last_rule_that_matches_decides() {
        use MatchType::Wildcard;
        use PolicyAction::{Allow, Deny};
        let all = || rule(Deny, Wildcard, "*", None);
        let local = || rule(Allow, Wildcard, "local://*", None);
        let policy = policy(vec![all(), local()]);
        assert!(judged(&policy, "local://context").is_ok());
        let error = judged(&policy, "docker-image://golang").unwrap_err();
        let denied = format!("source \"{GOLANG}:latest\" denied by policy: source denied by policy");
        assert_eq!(error.to_string(), denied);
        let reversed = self::policy(vec![local(), all()]);
        assert!(judged(&reversed, "local://context").is_err());
    }

    #[test]
    fn sources_are_converted_by_wildcard_expression_and_name() {
        use MatchType::{Exact, Regex, Wildcard};
        let convert = |kind, from: &str, to: &str| policy(vec![rule(PolicyAction::Convert, kind, from, Some(to))]);
        let wildcard = convert(Wildcard, &format!("{GOLANG}:1.*"), &format!("{GOLANG}:2.${{1}}-alpine"));
        assert_eq!(judged(&wildcard, "docker-image://golang:1.19").unwrap(), format!("{GOLANG}:2.19-alpine"));
        let expression = convert(Regex, "docker\\.io/library/(.*)$", "mirror.example/$1");
        let mirrored = "docker-image://mirror.example/golang:1";
        assert_eq!(judged(&expression, "docker-image://golang:1").unwrap(), mirrored);
        let exact = convert(Exact, &format!("{GOLANG}:1"), "docker-image://docker.io/library/a:1");
        assert_eq!(judged(&exact, "docker-image://golang:2").unwrap(), format!("{GOLANG}:2"));
        let circle = policy(vec![
            rule(PolicyAction::Convert, Exact, "a", Some("b")),
            rule(PolicyAction::Convert, Exact, "b", Some("a")),
        ]);
        assert_eq!(judged(&circle, "a"), Err(PolicyError::TooMany));
    }

    #[test]
    fn attributes_narrow_a_rule_down_and_are_set_by_it() {
        let mut pin = rule(PolicyAction::Convert, MatchType::Exact, "https://host/x", Some("https://host/x"));
        let selector = pin.selector.as_mut().unwrap();
        selector.constraints.push(wire::AttrConstraint {
            key: "http.filename".into(),
            value: "^a".into(),
            condition: AttrMatch::Matches.into(),
        });
        pin.updates.as_mut().unwrap().attrs.insert("http.checksum".into(), "sha256:1".into());
        let policy = policy(vec![pin]);
        let mut source = pb::SourceOp { identifier: "https://host/x".into(), ..pb::SourceOp::default() };
        assert!(!policy.judge(&mut source).unwrap());
        source.attrs.insert("http.filename".into(), "abc".into());
        assert!(policy.judge(&mut source).unwrap());
        assert_eq!(source.attrs["http.checksum"], "sha256:1");
    }

    #[test]
    fn what_needs_a_converted_source_is_renamed_too() {
        let encode = |op: pb::Op| Bytes::from(op.encode_to_vec());
        let input = |of: &Bytes| pb::Input { digest: Digest::of(of).to_string(), index: 0 };
        let source = pb::SourceOp { identifier: "docker-image://docker.io/library/a:1".into(), ..Default::default() };
        let first = encode(pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() });
        let last = encode(pb::Op { inputs: vec![input(&first)], ..pb::Op::default() });
        let metadata = [(Digest::of(&first), castor_llb::OpMetadata::default())].into();
        let locations = [(Digest::of(&first).to_string(), pb::Locations::default())].into();
        let map = pb::Source { locations, infos: Vec::new() };
        let definition = Definition { ops: vec![first.clone(), last], metadata, source: Some(map) };
        let to = "docker-image://docker.io/library/b:1";
        let from = "docker-image://docker.io/library/a:*";
        let policy = policy(vec![rule(PolicyAction::Convert, MatchType::Wildcard, from, Some(to))]);
        let converted = policy.apply(definition.clone()).unwrap();
        let graph = Graph::decode(&converted.to_pb(), &Limits::default()).unwrap();
        assert!(graph.vertices[0].name.contains("library/b:1"), "{}", graph.vertices[0].name);
        let new = graph.result.unwrap().vertex;
        assert!(converted.metadata.contains_key(&new) && new != Digest::of(&first));
        assert!(converted.source.unwrap().locations.contains_key(&new.to_string()));
        assert_eq!(Policy::default().apply(definition.clone()).unwrap(), definition);
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused() {
        let refused =
            |rule: wire::Rule| Policy::new(wire::Policy { version: 1, rules: vec![rule] }).unwrap_err().to_string();
        assert!(refused(wire::Rule::default()).contains("nil selector"));
        assert!(refused(rule(PolicyAction::Deny, MatchType::Regex, "(", None)).contains('('));
        assert!(refused(rule(PolicyAction::Deny, MatchType::Wildcard, "a**", None)).contains("**"));
        assert!(
            refused(wire::Rule { action: 9, ..rule(PolicyAction::Deny, MatchType::Exact, "a", None) }).contains('9')
        );
        let nowhere = policy(vec![rule(PolicyAction::Convert, MatchType::Exact, "a", None)]);
        assert_eq!(judged(&nowhere, "a"), Err(PolicyError::NoDestination));
    }
}
