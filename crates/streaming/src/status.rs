//! How a client learns what became of its command: the error stream's text.

use serde::Serialize;

use crate::backend::BackendError;

/// What the text looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// A message, and nothing on success: versions 1 to 3.
    Text,
    /// Kubernetes' `Status` in JSON, always: version 4 and later.
    Status,
}

/// What became of a session.
#[derive(Debug)]
pub(crate) enum Ending {
    Success,
    /// The command ended by itself, with a code other than 0.
    Exit(i32),
    /// There is no command, or none any more. The text says what could not be done.
    Failed(&'static str, BackendError),
}

/// `Status` of Kubernetes' meta/v1, as far as a client looks at it.
#[derive(Debug, Default, Serialize)]
struct Status {
    metadata: Metadata,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Debug, Default, Serialize)]
struct Metadata {}

#[derive(Debug, Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Debug, Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    message: String,
}

impl Ending {
    /// The bytes for the error stream.
    pub(crate) fn text(&self, form: Form) -> Vec<u8> {
        let status = self.status();
        match form {
            Form::Text => status.message.into_bytes(),
            Form::Status => serde_json::to_vec(&status).unwrap_or_default(),
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::Success => Status { status: "Success", ..Status::default() },
            Self::Exit(code) => Status {
                status: "Failure",
                message: format!("command terminated with non-zero exit code: exit status {code}"),
                reason: "NonZeroExitCode",
                details: cause("ExitCode", code.to_string()),
                ..Status::default()
            },
            Self::Failed(what, error) => {
                let message = format!("{what}: {}", berth_model::chain(&**error));
                Status {
                    status: "Failure",
                    message: format!("Internal error occurred: {message}"),
                    reason: "InternalError",
                    details: cause("", message),
                    code: Some(500),
                    ..Status::default()
                }
            }
        }
    }
}

fn cause(reason: &'static str, message: String) -> Option<Details> {
    Some(Details { causes: [Cause { reason, message }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ending: &Ending, text: &str, status: &str) {
        assert_eq!(String::from_utf8(ending.text(Form::Text)).unwrap(), text);
        assert_eq!(String::from_utf8(ending.text(Form::Status)).unwrap(), status);
    }

    #[test]
    fn success_is_silent_before_version_four() {
        check(&Ending::Success, "", r#"{"metadata":{},"status":"Success"}"#);
    }

    #[test]
    fn a_client_finds_the_exit_code_among_the_causes() {
        check(
            &Ending::Exit(3),
            "command terminated with non-zero exit code: exit status 3",
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
        );
    }

    #[test]
    fn what_could_not_be_done_is_an_internal_error_with_its_causes() {
        check(
            &Ending::Failed("error executing command in container", "no \"sh\"".into()),
            "Internal error occurred: error executing command in container: no \"sh\"",
            r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: error executing command in container: no \"sh\"","reason":"InternalError","details":{"causes":[{"message":"error executing command in container: no \"sh\""}]},"code":500}"#,
        );
    }
}
