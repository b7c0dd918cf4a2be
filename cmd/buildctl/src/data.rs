//! Structured values whose fields keep their order, as Go's structs do when they become JSON.

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    /// A number that has a name: people read the name, programs the number.
    Name(String, i64),
    /// A time in UTC, as JSON has it: `2026-01-02T03:04:05.6Z`.
    Time(String),
    /// An empty one is what Go calls nil.
    List(Vec<Data>),
    Map(Vec<(String, Data)>),
    /// A message of protobuf: its JSON and its text leave out what is empty.
    Record(Vec<(String, Data)>),
}

impl Data {
    /// A map with fields in this order.
    pub fn map<'a>(fields: impl IntoIterator<Item = (&'a str, Data)>) -> Self {
        Self::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// A record with fields in this order.
    pub fn record<'a>(fields: impl IntoIterator<Item = (&'a str, Data)>) -> Self {
        Self::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Whether it is what Go calls the zero value, or an empty list or map.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Number(value) | Self::Name(_, value) => *value == 0,
            Self::Text(text) | Self::Time(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Map(fields) => fields.is_empty(),
            Self::Record(_) => false,
        }
    }

    /// A list.
    pub fn list(items: impl IntoIterator<Item = Data>) -> Self {
        Self::List(items.into_iter().collect())
    }

    /// The text that Go prints of it.
    pub fn text(&self) -> String {
        let all = |items: &[Data]| items.iter().map(Data::text).collect::<Vec<_>>().join(" ");
        match self {
            Self::Null => "<nil>".to_owned(),
            Self::Text(text) | Self::Name(text, _) => text.clone(),
            Self::Time(text) => format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " ")),
            Self::List(items) => format!("[{}]", all(items)),
            Self::Map(fields) => {
                let pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", value.text())).collect();
                format!("map[{}]", pairs.join(" "))
            }
            Self::Record(fields) => message(fields),
            Self::Bool(_) | Self::Number(_) => self.json(),
        }
    }

    /// Its JSON.
    pub fn json(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) | Self::Name(_, value) => value.to_string(),
            Self::Text(text) | Self::Time(text) => quoted(text),
            Self::List(items) if items.is_empty() => "null".to_owned(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Data::json).collect();
                format!("[{}]", items.join(","))
            }
            Self::Map(fields) => object(fields.iter()),
            Self::Record(fields) => object(fields.iter().filter(|(_, value)| !value.is_empty())),
        }
    }
}

fn object<'a>(fields: impl Iterator<Item = &'a (String, Data)>) -> String {
    let fields: Vec<String> = fields.map(|(name, value)| format!("{}:{}", quoted(name), value.json())).collect();
    format!("{{{}}}", fields.join(","))
}

/// The fields of a message in protobuf's text form.
fn message(fields: &[(String, Data)]) -> String {
    let mut parts = Vec::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let one = |value: &Data| match value {
            Data::Text(text) | Data::Time(text) => format!("{name}:{}", quoted(text)),
            Data::Record(fields) => format!("{name}:{{{}}}", message(fields)),
            value => format!("{name}:{}", value.text()),
        };
        match value {
            Data::List(items) => parts.extend(items.iter().map(one)),
            Data::Map(entries) => parts.extend(entries.iter().map(|(key, value)| {
                let entry = [("key".to_owned(), Data::from(key)), ("value".to_owned(), value.clone())];
                format!("{name}:{{{}}}", message(&entry))
            })),
            value => parts.push(one(value)),
        }
    }
    parts.join(" ")
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl From<bool> for Data {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Data {
    fn from(value: i64) -> Self {
        Self::Number(value)
    }
}

impl From<&str> for Data {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&String> for Data {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<String> for Data {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl<T: Into<Data>> From<Option<T>> for Data {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
