//! The time that nothing of a result is later than: `SOURCE_DATE_EPOCH`.

use jiff::Timestamp;

use crate::{BuildResult, OptionError};

/// Where the frontend says it; with a platform's id behind it where there are several.
const KEY: &str = "source.date.epoch";

/// Who says which time that is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Epoch {
    /// The frontend, with its result, if anybody does.
    #[default]
    Frontend,
    /// The client, perhaps that there is none.
    Client(Option<Timestamp>),
}

impl Epoch {
    /// Reads the attribute: seconds since 1970, or nothing.
    pub(crate) fn parse(value: &str) -> Result<Self, OptionError> {
        parse(value).map(Self::Client)
    }

    /// The time for the platform `id` of `result`.
    pub(crate) fn of(self, result: &BuildResult, id: &str) -> Result<Option<Timestamp>, OptionError> {
        match self {
            Self::Client(epoch) => Ok(epoch),
            Self::Frontend => match result.text(KEY).map(parse).transpose()?.flatten() {
                None => result.text(&format!("{KEY}/{id}")).map_or(Ok(None), parse),
                epoch => Ok(epoch),
            },
        }
    }

    /// The time for what `result` is as a whole.
    pub(crate) fn of_all(self, result: &BuildResult) -> Result<Option<Timestamp>, OptionError> {
        match self {
            Self::Client(epoch) => Ok(epoch),
            Self::Frontend => result.text(KEY).map_or(Ok(None), parse),
        }
    }
}

fn parse(value: &str) -> Result<Option<Timestamp>, OptionError> {
    let bad = || OptionError::Number { key: "source-date-epoch".into(), value: value.into() };
    if value.is_empty() {
        return Ok(None);
    }
    let seconds: i64 = value.parse().map_err(|_| bad())?;
    Timestamp::from_second(seconds).map(Some).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_client_goes_before_the_frontend_and_all_before_one() {
        let result = |pairs: &[(&str, &'static str)]| BuildResult {
            platforms: Vec::new(),
            multi_platform: true,
            metadata: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect::<BTreeMap<_, _>>(),
        };
        let seconds = |epoch: Epoch, result: &BuildResult, id: &str| {
            epoch.of(result, id).map(|epoch| epoch.map(Timestamp::as_second))
        };
        let each = result(&[("source.date.epoch/linux/amd64", "5"), ("source.date.epoch/linux/arm64", "6")]);
        assert_eq!(seconds(Epoch::Frontend, &each, "linux/arm64"), Ok(Some(6)));
        assert_eq!(Epoch::Frontend.of_all(&each), Ok(None));
        assert_eq!(seconds(Epoch::parse("7").unwrap(), &each, "linux/arm64"), Ok(Some(7)));
        assert_eq!(seconds(Epoch::parse("").unwrap(), &each, "linux/arm64"), Ok(None));
        let all = result(&[("source.date.epoch", "8"), ("source.date.epoch/linux/amd64", "5")]);
        assert_eq!(seconds(Epoch::Frontend, &all, "linux/amd64"), Ok(Some(8)));
        assert!(Epoch::parse("context").is_err() && Epoch::parse("99999999999999999").is_err());
    }
}
