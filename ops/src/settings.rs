//! Settings that describe themselves: one definition is the structure that a parser fills, its defaults, and the
//! reference that people read.

/// One key of a section of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As the file spells it.
    pub name: &'static str,
    /// What a value is, as in TOML.
    pub kind: String,
    /// What a number counts.
    pub unit: &'static str,
    /// What holds when the key is not there, as TOML; nothing if then there is none.
    pub default: Option<String>,
    /// What it does.
    pub about: String,
}

impl Key {
    /// From what the compiler knows of a field: its type, its default as `{:?}` shows it, its documentation.
    pub fn of(name: &'static str, rust: &str, unit: &'static str, default: String, about: &str) -> Key {
        let rust: String = rust.chars().filter(|letter| !letter.is_whitespace()).collect();
        let inner = rust.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>'));
        let kind = kind(inner.unwrap_or(&rust));
        let about: Vec<&str> = about.split_whitespace().collect();
        Key { name, kind: kind.into(), unit, default: toml(&default), about: about.join(" ") }
    }
}

/// A type of Rust as people call it who write TOML.
fn kind(rust: &str) -> &'static str {
    match rust {
        "bool" => "boolean",
        "PathBuf" => "path",
        "Vec<PathBuf>" => "list of paths",
        "SocketAddr" => "\"IP:PORT\"",
        "String" => "string",
        "Vec<String>" => "list of strings",
        "(u64,u64)" => "[integer, integer]",
        _ => "integer",
    }
}

/// A value as `{:?}` shows it, as TOML: options are what they hold, or nothing, and so is what is empty.
fn toml(shown: &str) -> Option<String> {
    let held = shown.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(shown);
    if matches!(held, "None" | "\"\"" | "[]") {
        return None;
    }
    if let Some(pair) = held.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        return Some(format!("[{pair}]"));
    }
    let is_address = held.parse::<std::net::SocketAddr>().is_ok();
    Some(if is_address { format!("\"{held}\"") } else { held.to_owned() })
}

/// Defines a section of the configuration file: a structure that `serde` fills, where keys that are not known are an
/// error; its `Default`; and `keys()`, which describes every key.
///
/// A field reads `name: type = default, "unit";`, with its meaning as documentation. Fields in
/// a second block, after `and`, are not keys.
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $doc:expr])*
        pub struct $section:ident {
            $($(#[doc = $about:expr])* $key:ident: $kind:ty = $default:expr, $unit:literal;)*
        }
        $(and { $($(#[doc = $aside_doc:expr])* $aside:ident: $aside_kind:ty = $aside_default:expr;)* })?
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, ::serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $section {
            $($(#[doc = $about])* pub $key: $kind,)*
            $($($(#[doc = $aside_doc])* #[serde(skip)] pub $aside: $aside_kind,)*)?
        }

        impl Default for $section {
            fn default() -> $section {
                $section {
                    $($key: $default,)*
                    $($($aside: $aside_default,)*)?
                }
            }
        }

        impl $section {
            /// Every key of the section, in order.
            pub fn keys() -> Vec<$crate::settings::Key> {
                let default = $section::default();
                vec![$($crate::settings::Key::of(
                    stringify!($key), stringify!($kind), $unit, format!("{:?}", default.$key), concat!($($about),*),
                )),*]
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_defaults_are_shown_as_toml_has_them() {
        let of = |rust: &str, default: &str| {
            let key = Key::of("x", rust, "", default.into(), " Says\n  what. ");
            (key.kind, key.default)
        };
        assert_eq!(of("u64", "5"), ("integer".into(), Some("5".into())));
        assert_eq!(of("Option < u64 >", "None"), ("integer".into(), None));
        assert_eq!(of("Option<SocketAddr>", "Some(127.0.0.1:1)").1, Some("\"127.0.0.1:1\"".into()));
        assert_eq!(of("(u64, u64)", "(150, 300)"), ("[integer, integer]".into(), Some("[150, 300]".into())));
        assert_eq!(of("Vec<String>", "[]"), ("list of strings".into(), None));
        assert_eq!(Key::of("x", "bool", "", "true".into(), " Says\n  what. ").about, "Says what.");
    }
}
