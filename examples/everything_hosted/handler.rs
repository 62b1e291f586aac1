//! The handler: what it says about itself, and where each method of the protocol is answered. The tools themselves are
//! in `tools`, `questions`, `rounds` and `tasks`.
#![expect(deprecated, reason = "sampling, roots and logging are on their way out; clients have them still")]

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    handler::server::router::tool::ToolRouter,
    model::{
        CacheScope, CancelTaskParams, CompleteRequestParams, CompleteResult, GetPromptRequestParams, GetPromptResponse,
        GetSkillRequestParams, GetSkillResult, GetTaskParams, GetTaskResult, Implementation, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListSkillsResult, PaginatedRequestParams,
        ReadResourceDirectoryRequestParams, ReadResourceDirectoryResult, ReadResourceRequestParams,
        ReadResourceResponse, ReadResourceResult, ServerCapabilities, ServerConfig, SetLevelRequestMethod,
        SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
    task_manager::TaskManager,
    tool_handler,
};
use serde_json::json;

use crate::{
    asking::is_modern,
    content,
    hub::{Hub, WATCHED},
    memory::Memory,
    skills,
};

/// How long clients may keep what only changes with the program.
const FRESH_MS: u64 = 60_000;

/// A server with one tool, prompt or resource for each thing that the protocol can do, under the names that the official
/// conformance suite looks for.
pub(crate) struct Everything {
    tool_router: ToolRouter<Self>,
    pub(crate) hub: Hub,
    pub(crate) memory: Memory,
    pub(crate) tasks: TaskManager,
}

impl Everything {
    pub(crate) fn new() -> Self {
        Self {
            tool_router: Self::tools() + Self::questions() + Self::rounds() + Self::jobs(),
            hub: Hub::new(),
            memory: Memory::new(),
            tasks: TaskManager::new(),
        }
    }
}

/// The lists here are of one page, so that no cursor was ever given.
fn without_cursor(request: Option<PaginatedRequestParams>) -> Result<(), ErrorData> {
    match request.and_then(|request| request.cursor) {
        None => Ok(()),
        Some(_) => Err(ErrorData::invalid_params("cursor is none that this server gave", None)),
    }
}

fn not_found(uri: String) -> ErrorData {
    ErrorData::resource_not_found(format!("there is nothing under {uri:?}"), Some(json!({ "uri": uri })))
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Everything {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_logging()
            .enable_completions()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_tasks()
            .enable_skills_with_directory_read()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("everything-hosted", env!("CARGO_PKG_VERSION")))
            .with_instructions("Has one of everything, for tests.")
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.hub.enter(context.peer).await;
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        // Newer clients say it with each request and have no such method.
        if is_modern(&context) {
            return Err(ErrorData::method_not_found::<SetLevelRequestMethod>());
        }
        self.hub.set_level(&context.peer, request.level).await;
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        content::complete(&request.r#ref, &request.argument).map(CompleteResult::new)
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        without_cursor(request)?;
        Ok(ListPromptsResult::with_all_items(content::prompts()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name == content::ASKING_PROMPT {
            return self.asking_prompt(&request, &context).await;
        }
        Ok(content::prompt(&request.name, request.arguments.as_ref())?.into())
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        without_cursor(request)?;
        let mut resources = content::resources();
        resources.push(skills::resource());
        Ok(ListResourcesResult::with_all_items(resources))
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        without_cursor(request)?;
        Ok(ListResourceTemplatesResult::with_all_items(content::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let contents = skills::read(&request.uri).or_else(|| content::read(&request.uri));
        let result = ReadResourceResult::new(vec![contents.ok_or_else(|| not_found(request.uri))?]);
        if !is_modern(&context) {
            return Ok(result.into());
        }
        Ok(result.with_ttl_ms(FRESH_MS).with_cache_scope(CacheScope::Public).into())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let mut accepted = requested.clone();
        if let Some(uris) = &mut accepted.resource_subscriptions {
            uris.retain(|uri| uri == WATCHED);
        }
        Some(accepted)
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        self.hub.serve(&subscription).await;
        Ok(())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if request.uri != WATCHED {
            return Err(not_found(request.uri));
        }
        self.hub.watch(&context.peer, request.uri).await;
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.hub.unwatch(&context.peer, &request.uri).await;
        Ok(())
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        self.tasks.get_task(&request.task_id).map(GetTaskResult::new)
    }

    async fn update_task(&self, request: UpdateTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(&self, request: CancelTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }

    async fn list_skills(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListSkillsResult, ErrorData> {
        without_cursor(request)?;
        Ok(ListSkillsResult::with_all_items(vec![skills::skill()])
            .with_ttl_ms(FRESH_MS)
            .with_cache_scope(CacheScope::Public))
    }

    async fn get_skill(
        &self,
        request: GetSkillRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetSkillResult, ErrorData> {
        let skill = skills::skill();
        if request.uri != skill.uri {
            return Err(ErrorData::invalid_params(format!("there is no skill {:?}", request.uri), None));
        }
        Ok(GetSkillResult::new(skill).with_ttl_ms(FRESH_MS).with_cache_scope(CacheScope::Public))
    }

    async fn read_resource_directory(
        &self,
        request: ReadResourceDirectoryRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceDirectoryResult, ErrorData> {
        if request.cursor.is_some() {
            return Err(ErrorData::invalid_params("cursor is none that this server gave", None));
        }
        let resources = skills::directory(&request.uri).ok_or_else(|| {
            ErrorData::invalid_params(format!("{:?} is no directory", request.uri), Some(json!({ "uri": request.uri })))
        })?;
        Ok(ReadResourceDirectoryResult::with_all_items(resources))
    }
}
