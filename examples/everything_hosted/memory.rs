//! What a client carries from one round of a call to the next.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use rmcp::{
    ErrorData,
    model::{CallToolResponse, InputRequests, InputRequiredResult, RequestStateCodec, SealOptions},
};
use serde_json::Value;

/// How long it is believed.
const STATE_TIME_MAX: Duration = Duration::from_secs(600);

/// Seals what a client carries, so that it comes back as it was or is not believed.
#[derive(Debug)]
pub(crate) struct Memory(RequestStateCodec);

impl Memory {
    /// With a key of this process. Several processes that serve the same clients would be configured with one key.
    pub(crate) fn new() -> Self {
        let random = RandomState::new();
        let key: Vec<u8> = (0..4_u64).flat_map(|part| random.hash_one(part).to_le_bytes()).collect();
        Self(RequestStateCodec::new_unchecked(key))
    }

    /// Asks again later, and remembers. A memory is good only for the tool that made it.
    pub(crate) fn keep(
        &self,
        tool: &str,
        questions: InputRequests,
        known: &Value,
    ) -> Result<CallToolResponse, ErrorData> {
        let options = SealOptions::new().associated_data(tool.as_bytes()).ttl(STATE_TIME_MAX);
        let sealed = self.0.seal_with(known.to_string().as_bytes(), &options);
        Ok(InputRequiredResult::new(Some(questions), Some(sealed)).into())
    }

    pub(crate) fn recall(&self, tool: &str, sealed: Option<String>) -> Result<Option<Value>, ErrorData> {
        let Some(sealed) = sealed else { return Ok(None) };
        match self.0.open_json_with(&sealed, tool.as_bytes()) {
            Ok(known) => Ok(Some(known)),
            // Why is not said: it would help only somebody who tries to make one.
            Err(_) => Err(ErrorData::invalid_params("requestState is not what this tool gave, or is too old", None)),
        }
    }
}
