//! What a column can hold, and how callers' types go in and come out. Id types implement the two traits themselves.

use std::borrow::Cow;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    Integer(i64),
    Text(Cow<'a, str>),
    Blob(Cow<'a, [u8]>),
    /// Cannot be stored, and why. The statement is refused on both engines alike.
    Unstorable(String),
}

impl Value<'_> {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "NULL",
            Value::Integer(_) => "an integer",
            Value::Text(_) => "text",
            Value::Blob(_) => "a blob",
            Value::Unstorable(_) => "an unstorable value",
        }
    }

    /// PostgreSQL has no NUL in text, so SQLite is not given one either.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Value::Text(text) if text.contains('\0') => Err("text holds a NUL character".into()),
            Value::Unstorable(why) => Err(why.clone()),
            _ => Ok(()),
        }
    }
}

/// A type that can be a parameter.
pub trait ToValue {
    fn to_value(&self) -> Value<'_>;
}

/// A type that can be read from a column. The error is a sentence for the operator.
pub trait FromValue: Sized {
    fn from_value(value: Value<'_>) -> Result<Self, String>;
}

/// The parameters of a statement: `params![id, &name, 5]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$(&$value as &dyn $crate::ToValue),*] as &[&dyn $crate::ToValue]
    };
}

impl ToValue for Value<'_> {
    fn to_value(&self) -> Value<'_> {
        match self {
            Value::Text(text) => Value::Text(Cow::Borrowed(text)),
            Value::Blob(blob) => Value::Blob(Cow::Borrowed(blob)),
            other => other.clone(),
        }
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value<'_> {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, T::to_value)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        match value {
            Value::Null => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

/// Numbers of every width are BIGINT; what does not fit is refused, never cut.
macro_rules! integers {
    ($($number:ty),*) => {$(
        impl ToValue for $number {
            fn to_value(&self) -> Value<'_> {
                i64::try_from(*self)
                    .map_or_else(|_| Value::Unstorable(format!("{self} does not fit a BIGINT")), Value::Integer)
            }
        }

        impl FromValue for $number {
            fn from_value(value: Value<'_>) -> Result<Self, String> {
                match value {
                    Value::Integer(number) => <$number>::try_from(number)
                        .map_err(|_| format!("{number} does not fit {}", stringify!($number))),
                    other => Err(wanted("an integer", &other)),
                }
            }
        }
    )*};
}
integers!(i64, i32, i16, u64, u32, u16, u8, usize);

impl ToValue for bool {
    fn to_value(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl FromValue for bool {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        match value {
            Value::Integer(0) => Ok(false),
            Value::Integer(1) => Ok(true),
            other => Err(wanted("0 or 1", &other)),
        }
    }
}

impl ToValue for str {
    fn to_value(&self) -> Value<'_> {
        Value::Text(Cow::Borrowed(self))
    }
}

impl ToValue for String {
    fn to_value(&self) -> Value<'_> {
        Value::Text(Cow::Borrowed(self))
    }
}

impl FromValue for String {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        match value {
            Value::Text(text) => Ok(text.into_owned()),
            other => Err(wanted("text", &other)),
        }
    }
}

impl ToValue for [u8] {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(Cow::Borrowed(self))
    }
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(Cow::Borrowed(self))
    }
}

impl ToValue for Vec<u8> {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(Cow::Borrowed(self))
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        match value {
            Value::Blob(blob) => Ok(blob.into_owned()),
            other => Err(wanted("a blob", &other)),
        }
    }
}

impl ToValue for Uuid {
    fn to_value(&self) -> Value<'_> {
        Value::Text(Cow::Owned(self.to_string()))
    }
}

impl FromValue for Uuid {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        Uuid::parse_str(&text).map_err(|error| format!("{text:?} is no UUID: {error}"))
    }
}

fn wanted(what: &str, found: &Value<'_>) -> String {
    format!("wanted {what}, found {}", found.kind())
}
