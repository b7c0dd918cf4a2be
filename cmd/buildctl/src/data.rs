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
    List(Vec<Data>),
    Map(Vec<(String, Data)>),
    /// A map whose JSON leaves out what is empty.
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
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Map(fields) => fields.is_empty(),
            Self::Record(_) => false,
        }
    }

    /// A list; an empty one is what Go calls nil.
    pub fn list(items: impl IntoIterator<Item = Data>) -> Self {
        let items: Vec<Data> = items.into_iter().collect();
        if items.is_empty() { Self::Null } else { Self::List(items) }
    }

    /// Its JSON.
    pub fn json(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) | Self::Name(_, value) => value.to_string(),
            Self::Text(text) => quoted(text),
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
