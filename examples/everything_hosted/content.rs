//! Resources, the template, prompts, and proposals for their arguments.

use rmcp::{
    ErrorData,
    model::{
        ArgumentInfo, CompletionInfo, ContentBlock, EmbeddedResource, GetPromptResult, JsonObject, Prompt,
        PromptArgument, PromptMessage, Reference, Resource, ResourceContents, ResourceTemplate, Role,
    },
};
use serde_json::{Value, json};

use crate::hub::WATCHED;

/// A PNG of one red pixel.
pub(crate) const PIXEL_PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// The prompt that is made only after the user was asked.
pub(crate) const ASKING_PROMPT: &str = "test_input_required_result_prompt";

const TEXT: &str = "test://static-text";
const BINARY: &str = "test://static-binary";
const TEMPLATE: &str = "test://template/{id}/data";
/// The ids that the template has data for, as far as it proposes any.
const IDS: [&str; 2] = ["123", "124"];
/// What the argument `arg1` is often.
const PLACES: [&str; 3] = ["paris", "park", "party"];
/// A longer one is not an id.
const ID_BYTES_MAX: usize = 128;

pub(crate) fn resources() -> Vec<Resource> {
    [
        (TEXT, "static-text", "A text that never changes", "text/plain"),
        (BINARY, "static-binary", "An image that never changes", "image/png"),
        (WATCHED, "watched-resource", "A text that clients can subscribe to", "text/plain"),
    ]
    .map(|(uri, name, description, mime_type)| {
        Resource::new(uri, name).with_description(description).with_mime_type(mime_type)
    })
    .into()
}

pub(crate) fn templates() -> Vec<ResourceTemplate> {
    let template = ResourceTemplate::new(TEMPLATE, "template");
    vec![template.with_description("Data under any id").with_mime_type("application/json")]
}

/// What is under a URI, if anything is.
pub(crate) fn read(uri: &str) -> Option<ResourceContents> {
    let text = match uri {
        BINARY => return Some(ResourceContents::blob(PIXEL_PNG, uri).with_mime_type("image/png")),
        TEXT => "This is the content of the static text resource.",
        WATCHED => "This is the content of the watched resource.",
        _ => {
            let (before, after) = TEMPLATE.split_once("{id}")?;
            let id = uri.strip_prefix(before)?.strip_suffix(after)?;
            if id.is_empty() || id.len() > ID_BYTES_MAX || id.contains(['/', '?', '#']) {
                return None;
            }
            let data = json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") });
            return Some(ResourceContents::text(data.to_string(), uri).with_mime_type("application/json"));
        }
    };
    Some(ResourceContents::text(text, uri).with_mime_type("text/plain"))
}

pub(crate) fn prompts() -> Vec<Prompt> {
    let argument = |name: &str, about: &str| PromptArgument::new(name).with_description(about).with_required(true);
    let two = vec![argument("arg1", "The first one"), argument("arg2", "The second one")];
    let embedded = vec![argument("resourceUri", "The URI that the resource inside the prompt has")];
    vec![
        Prompt::new("test_simple_prompt", Some("A prompt without arguments"), None),
        Prompt::new("test_prompt_with_arguments", Some("A prompt with two arguments"), Some(two)),
        Prompt::new("test_prompt_with_embedded_resource", Some("A prompt with a resource inside"), Some(embedded)),
        Prompt::new("test_prompt_with_image", Some("A prompt with an image"), None),
        Prompt::new(ASKING_PROMPT, Some("A prompt that asks for its context"), None),
    ]
}

/// A prompt that can be made at once.
///
/// # Errors
/// A prompt that is not there, or an argument that it needs.
pub(crate) fn prompt(name: &str, arguments: Option<&JsonObject>) -> Result<GetPromptResult, ErrorData> {
    let text = |text: &str| PromptMessage::new_text(Role::User, text);
    let argument = |wanted: &str| {
        let value = arguments.and_then(|arguments| arguments.get(wanted)).and_then(Value::as_str);
        value.ok_or_else(|| ErrorData::invalid_params(format!("the prompt {name} needs a text as {wanted:?}"), None))
    };
    let messages = match name {
        "test_simple_prompt" => vec![text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments" => {
            let (one, two) = (argument("arg1")?, argument("arg2")?);
            vec![text(&format!("Prompt with arguments: arg1='{one}', arg2='{two}'"))]
        }
        "test_prompt_with_embedded_resource" => {
            let contents = ResourceContents::text("Embedded resource content for testing.", argument("resourceUri")?);
            let resource = EmbeddedResource::new(contents.with_mime_type("text/plain"));
            vec![
                PromptMessage::new(Role::User, ContentBlock::Resource(resource)),
                text("Please process the embedded resource above."),
            ]
        }
        "test_prompt_with_image" => vec![
            PromptMessage::new(Role::User, ContentBlock::image(PIXEL_PNG, "image/png")),
            text("Please analyze the image above."),
        ],
        _ => return Err(ErrorData::invalid_params(format!("there is no prompt {name:?}"), None)),
    };
    Ok(GetPromptResult::new(messages))
}

/// Proposals that begin with what there is of an argument.
///
/// # Errors
/// A prompt or a template that is not there.
pub(crate) fn complete(of: &Reference, argument: &ArgumentInfo) -> Result<CompletionInfo, ErrorData> {
    let known: &[&str] = match of {
        Reference::Prompt(prompt) if prompts().iter().any(|known| known.name == prompt.name) => {
            if prompt.name == "test_prompt_with_arguments" && argument.name == "arg1" { &PLACES } else { &[] }
        }
        Reference::Resource(template) if template.uri == TEMPLATE => {
            if argument.name == "id" {
                &IDS
            } else {
                &[]
            }
        }
        _ => return Err(ErrorData::invalid_params("ref names no prompt and no template of this server", None)),
    };
    let values = known.iter().filter(|value| value.starts_with(&argument.value)).map(|&value| value.to_owned());
    CompletionInfo::with_all_values(values.collect()).map_err(|error| ErrorData::internal_error(error, None))
}
