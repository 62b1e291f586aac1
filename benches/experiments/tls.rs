//! To come.
use crate::{Result, lab::Lab};
pub(crate) fn tls(_: &Lab) -> Result<()> {
    Err("to come".into())
}
