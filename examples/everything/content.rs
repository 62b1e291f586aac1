//! Resources, templates, prompts, and proposals for their arguments.

use bigiron::{
    Lane, Prompt, Resource,
    rmcp::model::{ContentBlock, EmbeddedResource, PromptMessage, ResourceContents, Role},
    server::Builder,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::{Nothing, PIXEL_PNG};

#[derive(Debug, Deserialize, JsonSchema)]
struct TwoArguments {
    /// The first one.
    arg1: String,
    /// The second one.
    arg2: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct WithResource {
    /// The URI that the resource inside the prompt has.
    resource_uri: String,
}

/// What the argument `arg1` is often.
const PROPOSALS: [&str; 3] = ["paris", "park", "party"];

pub(crate) fn add(server: Builder) -> Builder {
    server
        .resource(Resource::new(
            "test://static-text",
            "static-text",
            "A text that never changes",
            "text/plain",
            Lane::Inline,
            |_, _| "This is the content of the static text resource.",
        ))
        .resource(Resource::new(
            "test://static-binary",
            "static-binary",
            "An image that never changes",
            "image/png",
            Lane::Inline,
            |wanted, _| vec![ResourceContents::blob(PIXEL_PNG, wanted.uri).with_mime_type("image/png")],
        ))
        .resource(Resource::new(
            "test://watched-resource",
            "watched-resource",
            "A text that clients can subscribe to",
            "text/plain",
            Lane::Inline,
            |_, _| "This is the content of the watched resource.",
        ))
        .resource(
            Resource::new(
                "test://template/{id}/data",
                "template",
                "Data under any id",
                "application/json",
                Lane::Inline,
                |wanted, _| {
                    let id = wanted.value("id");
                    json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") }).to_string()
                },
            )
            .complete("id", |so_far| {
                ["123", "124"].iter().filter(|id| id.starts_with(so_far)).map(|id| (*id).into()).collect()
            }),
        )
        .prompt(Prompt::new(
            "test_simple_prompt",
            "A prompt without arguments",
            Lane::Inline,
            |_: Nothing, _| "This is a simple prompt for testing.",
        ))
        .prompt(
            Prompt::new(
                "test_prompt_with_arguments",
                "A prompt with two arguments",
                Lane::Inline,
                |args: TwoArguments, _| format!("Prompt with arguments: arg1='{}', arg2='{}'", args.arg1, args.arg2),
            )
            .complete("arg1", |so_far| {
                PROPOSALS.iter().filter(|p| p.starts_with(so_far)).map(|p| (*p).to_owned()).collect()
            }),
        )
        .prompt(Prompt::new(
            "test_prompt_with_embedded_resource",
            "A prompt with a resource inside",
            Lane::Inline,
            |args: WithResource, _| {
                let contents = ResourceContents::text("Embedded resource content for testing.", args.resource_uri)
                    .with_mime_type("text/plain");
                vec![
                    PromptMessage::new(Role::User, ContentBlock::Resource(EmbeddedResource::new(contents))),
                    PromptMessage::new_text(Role::User, "Please process the embedded resource above."),
                ]
            },
        ))
        .prompt(Prompt::new("test_prompt_with_image", "A prompt with an image", Lane::Inline, |_: Nothing, _| {
            vec![
                PromptMessage::new(Role::User, ContentBlock::image(PIXEL_PNG, "image/png")),
                PromptMessage::new_text(Role::User, "Please analyze the image above."),
            ]
        }))
}
