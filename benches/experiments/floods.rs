//! To come.
use crate::{Result, lab::Lab};
pub(crate) fn floods(_: &Lab) -> Result<()> {
    Err("to come".into())
}
