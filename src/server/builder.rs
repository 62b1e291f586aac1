//! What a server is put together from, by whoever writes it: tools, resources, prompts, handlers, and where tasks are
//! kept. How it is started is in `starting`.

use std::sync::Arc;

use schemars::JsonSchema;

use crate::{
    changes::Changes,
    mcp::router::Identity,
    skill::Skill,
    tasks::Store,
    tool::{Handler, Prompt, Resource, Tool},
};

/// Where tasks are kept.
#[derive(Debug)]
pub(super) enum TaskStore {
    Memory,
    Own(Arc<dyn Store>),
}

/// A server being put together.
#[derive(Debug, Default)]
pub struct Builder {
    pub(super) tools: Vec<Tool>,
    pub(super) resources: Vec<Resource>,
    pub(super) prompts: Vec<Prompt>,
    pub(super) changes: Changes,
    pub(super) skills: Vec<Skill>,
    pub(super) handlers: Vec<Handler>,
    pub(super) tasks: Option<TaskStore>,
    pub(super) toolbox: bool,
    pub(super) identity: Option<Identity>,
}

impl Builder {
    /// The name and version that clients are told. Without it they are bigiron's own.
    #[must_use]
    pub fn identity(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.identity = Some(Identity { name: name.into(), version: version.into() });
        self
    }

    /// Adds a tool whose function returns when it is done; see [`Tool::new`].
    #[must_use]
    pub fn tool<A, R>(
        self,
        name: &'static str,
        description: &'static str,
        lane: crate::call::Lane,
        run: impl Fn(A, crate::call::Ctx) -> R + Send + Sync + 'static,
    ) -> Self
    where
        A: serde::de::DeserializeOwned + JsonSchema,
        R: crate::tool::IntoReply,
    {
        self.with(Tool::new(name, description, lane, run))
    }

    /// Adds a tool whose function returns a future; see [`Tool::new_async`].
    #[must_use]
    pub fn async_tool<A, R, F>(
        self,
        name: &'static str,
        description: &'static str,
        run: impl Fn(A, crate::call::Ctx) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: serde::de::DeserializeOwned + JsonSchema,
        R: crate::tool::IntoReply,
        F: Future<Output = R> + Send + 'static,
    {
        self.with(Tool::new_async(name, description, run))
    }

    /// Adds a tool.
    #[must_use]
    pub fn with(mut self, tool: Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// Adds a resource, or a template for many.
    #[must_use]
    pub fn resource(mut self, resource: Resource) -> Self {
        self.resources.push(resource);
        self
    }

    /// Adds a prompt.
    #[must_use]
    pub fn prompt(mut self, prompt: Prompt) -> Self {
        self.prompts.push(prompt);
        self
    }

    /// Serves an rmcp handler as it is, besides what else there is.
    #[must_use]
    pub fn host(mut self, handler: Handler) -> Self {
        self.handlers.push(handler);
        self
    }

    /// Adds a skill.
    #[must_use]
    pub fn skill(mut self, skill: Skill) -> Self {
        self.skills.push(skill);
        self
    }

    /// Lets calls become tasks ([`crate::Ctx::become_task`]), kept in this process's memory; with `cluster.redis`, in Redis,
    /// so that every instance finds them.
    #[must_use]
    pub fn tasks(mut self) -> Self {
        self.tasks = Some(TaskStore::Memory);
        self
    }

    /// The same, kept in a store of yours.
    #[must_use]
    pub fn tasks_in(mut self, store: Arc<dyn Store>) -> Self {
        self.tasks = Some(TaskStore::Own(store));
        self
    }

    /// A way to tell clients that a list or a resource has changed, for use outside calls.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Adds the tools that ship with bigiron, as far as the settings have them on.
    #[must_use]
    pub fn toolbox(mut self) -> Self {
        self.toolbox = true;
        self
    }

    /// The name and version that the author gave.
    pub(crate) fn identity_of(&self) -> Option<(&str, &str)> {
        self.identity.as_ref().map(|identity| (identity.name.as_str(), identity.version.as_str()))
    }
}
