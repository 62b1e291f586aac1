//! Kinds of files: what a file in a folder is, told by its name, and which kinds are text.

/// The media type of a file by the end of its name; of one whose name says nothing, by its bytes.
pub(super) fn type_of(path: &str, bytes: &[u8]) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
    match end.to_ascii_lowercase().as_str() {
        "md" | "markdown" => "text/markdown",
        "txt" | "log" => "text/plain",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "csv" => "text/csv",
        "tsv" => "text/tab-separated-values",
        "py" => "text/x-python",
        "rs" => "text/x-rust",
        "js" | "mjs" => "text/javascript",
        "ts" => "text/x-typescript",
        "sh" | "bash" => "text/x-shellscript",
        "json" => "application/json",
        "jsonl" | "ndjson" => "application/x-ndjson",
        "yaml" | "yml" => "application/yaml",
        "toml" => "application/toml",
        "xml" | "xsd" => "application/xml",
        "sql" => "application/sql",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "wasm" => "application/wasm",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        _ if std::str::from_utf8(bytes).is_ok() && !bytes.contains(&0) => "text/plain",
        _ => "application/octet-stream",
    }
}

/// Whether files of this type are text, and sent as such when they are UTF-8.
pub(super) fn is_text(mime_type: &str) -> bool {
    let essence = mime_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let Some(("application", kind)) = essence.split_once('/') else {
        return essence.starts_with("text/") || essence.ends_with("+xml") || essence.ends_with("+json");
    };
    let kinds = ["json", "x-ndjson", "yaml", "x-yaml", "toml", "xml", "sql", "javascript", "x-sh"];
    kinds.contains(&kind) || ["+json", "+xml", "+yaml"].iter().any(|end| kind.ends_with(end))
}

/// Whether this is a media type that a file may have.
pub(super) fn is_type(mime_type: &str) -> bool {
    let essence = mime_type.split(';').next().unwrap_or("").trim();
    let part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    let two_parts = essence.split_once('/').is_some_and(|(kind, sub)| part(kind) && part(sub));
    two_parts && !essence.eq_ignore_ascii_case(super::set::FOLDER_TYPE) && !mime_type.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_types_and_bytes_tell_where_names_do_not() {
        for (path, bytes, expected) in [
            ("a/b.PY", &b"\0"[..], "text/x-python"),
            ("README.md", b"", "text/markdown"),
            ("a.b/Makefile", b"all:", "text/plain"),
            ("a.b/data", b"\0", "application/octet-stream"),
            ("x.bin", b"\xff", "application/octet-stream"),
            ("x.svg", b"", "image/svg+xml"),
        ] {
            assert_eq!(type_of(path, bytes), expected, "{path}");
        }
    }

    #[test]
    fn text_and_types_are_known() {
        for (mime, text) in [
            ("text/markdown; charset=utf-8", true),
            ("Application/JSON", true),
            ("application/ld+json", true),
            ("image/svg+xml", true),
            ("image/png", false),
            ("application/pdf", false),
            ("application/octet-stream", false),
        ] {
            assert!(is_type(mime), "{mime}");
            assert_eq!(is_text(mime), text, "{mime}");
        }
        for mime in ["", "text", "/", "text/", "a b/c", "inode/directory", "text/plain;\n", "text/plain/x"] {
            assert!(!is_type(mime), "{mime:?}");
        }
    }
}
