//! How the client commands reach a relay: its Admin API over HTTP, with the bearer token.
//!
//! Called by every client command. A local relay is found by its data directory, where it leaves the
//! token (`admin-token`) and, while it runs, its address (`admin-url`); any other by `--admin-url`. Redirects
//! are not followed, so the token goes to nobody else.

use super::Failure;
use crate::domain::Secret;
use crate::settings::environment;
use awc::error::SendRequestError;
use awc::http::{Method, Uri};
use serde_json::{Map, Value};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the relay may take for an ordinary answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a test of an account: longer than the relay itself may wait for the upstream, by default.
pub const TEST_PATIENCE: Duration = Duration::from_mins(11);
/// The largest answer, bytes; far above any list.
const MAX_ANSWER: usize = 256 << 20;

/// Options of every client command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ClientFlags {
    /// The relay that keeps its data here [env: CLAUDE_RELAY_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR", global = true, help_heading = "Which relay", conflicts_with = "admin_url")]
    pub data_dir: Option<PathBuf>,
    /// The relay whose Admin API is here; the token comes from CLAUDE_RELAY_ADMIN_TOKEN
    /// [env: CLAUDE_RELAY_ADMIN_URL]
    #[arg(long, value_name = "URL", global = true, help_heading = "Which relay")]
    pub admin_url: Option<String>,
    /// Print exactly one JSON document
    #[arg(long, global = true)]
    pub json: bool,
}

/// A relay that can be asked.
#[derive(Debug)]
pub struct Relay {
    url: String,
    token: Secret,
    token_from: String,
    /// What to say and do when nobody answers.
    remedy: String,
}

impl Relay {
    /// Finds the relay that the flags, or else the environment, mean.
    pub fn find(flags: &ClientFlags) -> Result<Self, Failure> {
        Self::find_with(flags, environment())
    }

    fn find_with(flags: &ClientFlags, env: impl Iterator<Item = (String, String)>) -> Result<Self, Failure> {
        let (mut dir, mut url, mut token) = (None, None, None);
        for (name, value) in env.filter(|(_, value)| !value.trim().is_empty()) {
            match name.as_str() {
                "CLAUDE_RELAY_DATA_DIR" => dir = Some(PathBuf::from(value)),
                "CLAUDE_RELAY_ADMIN_URL" => url = Some(value),
                "CLAUDE_RELAY_ADMIN_TOKEN" => token = Some(Secret::new(value.trim())),
                _ => {}
            }
        }
        match (&flags.data_dir, flags.admin_url.clone().or(url)) {
            (None, Some(url)) => Self::at_url(&url, token),
            (dir_flag, _) => Self::at_dir(&dir_flag.clone().or(dir).unwrap_or_else(|| "./data".into()), token),
        }
    }

    fn at_url(url: &str, token: Option<Secret>) -> Result<Self, Failure> {
        let token = token.ok_or_else(|| {
            Failure::Usage("with an admin URL the token comes from CLAUDE_RELAY_ADMIN_TOKEN, which is not set".into())
        })?;
        let remedy = format!("no relay was reached at {url}; is it running, and is this its admin address?");
        Ok(Self { url: checked_url(url)?, token, token_from: "CLAUDE_RELAY_ADMIN_TOKEN".into(), remedy })
    }

    fn at_dir(dir: &Path, token: Option<Secret>) -> Result<Self, Failure> {
        let shown = dir.display().to_string();
        let quoted = if shown.contains(char::is_whitespace) { format!("'{shown}'") } else { shown.clone() };
        let remedy = format!(
            "the relay is not running for data directory {shown}; start it with: claude-relay serve --data-dir {quoted}"
        );
        let line = |name: &str| match std::fs::read_to_string(dir.join(name)) {
            Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            Ok(_) => Err(Failure::NotReachable(remedy.clone())),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(Failure::NotReachable(remedy.clone()))
            }
            Err(e) => Err(Failure::Refused(format!("{}: {e}", dir.join(name).display()))),
        };
        let url = checked_url(&line("admin-url")?)?;
        let (token, token_from) = match token {
            Some(token) => (token, "CLAUDE_RELAY_ADMIN_TOKEN".to_owned()),
            None => (Secret::new(line("admin-token")?), dir.join("admin-token").display().to_string()),
        };
        Ok(Self { url, token, token_from, remedy })
    }

    /// GET `/admin` + `path`.
    pub fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        self.ask(Method::GET, path, query, None, PATIENCE)
    }

    /// POST an object.
    pub fn post(&self, path: &str, body: Map<String, Value>, patience: Option<Duration>) -> Result<Value, Failure> {
        self.ask(Method::POST, path, &[], Some(body), patience.unwrap_or(PATIENCE))
    }

    /// POST without a body: the path says it all.
    pub fn command(&self, path: &str, patience: Option<Duration>) -> Result<Value, Failure> {
        self.ask(Method::POST, path, &[], None, patience.unwrap_or(PATIENCE))
    }

    /// PATCH with the fields to change.
    pub fn patch(&self, path: &str, body: Map<String, Value>) -> Result<Value, Failure> {
        self.ask(Method::PATCH, path, &[], Some(body), PATIENCE)
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::DELETE, path, &[], None, PATIENCE)
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Map<String, Value>>,
        patience: Duration,
    ) -> Result<Value, Failure> {
        let talk = async {
            let client = awc::Client::builder().disable_redirects().timeout(patience).finish();
            let request = client.request(method, format!("{}/admin{path}", self.url)).bearer_auth(self.token.expose());
            // awc would put a bare `?` behind the path.
            let request = if query.is_empty() { Ok(request) } else { request.query(&query) };
            let request = request.map_err(|e| Failure::Usage(e.to_string()))?;
            let sent = match body {
                Some(body) => request.send_json(&body),
                None => request.send(),
            };
            let mut answer = sent.await.map_err(|e| self.unanswered(&e))?.timeout(patience);
            let bytes = answer.body().limit(MAX_ANSWER).await;
            let bytes = bytes.map_err(|e| Failure::NotReachable(format!("the relay's answer broke off: {e}")))?;
            self.judge(answer.status().as_u16(), &bytes)
        };
        actix_rt::System::new().block_on(talk)
    }

    fn unanswered(&self, error: &SendRequestError) -> Failure {
        match error {
            SendRequestError::Connect(e) => Failure::NotReachable(format!("{} ({e})", self.remedy)),
            SendRequestError::Timeout => {
                Failure::NotReachable(format!("the relay at {} did not answer in time", self.url))
            }
            SendRequestError::Url(e) => Failure::Usage(format!("{}: {e}", self.url)),
            // An admin token with a line break in it, for one.
            SendRequestError::Http(e) => Failure::Usage(format!("no request can be made of this: {e}")),
            other => Failure::NotReachable(format!("the relay at {} broke off: {other}", self.url)),
        }
    }

    /// The document of a good answer, or what its error says.
    fn judge(&self, status: u16, bytes: &[u8]) -> Result<Value, Failure> {
        let value: Option<Value> = serde_json::from_slice(bytes).ok();
        match value {
            Some(value) if (200..300).contains(&status) => Ok(value),
            Some(value) if value["error"]["message"].is_string() => {
                let message = value["error"]["message"].as_str().unwrap_or_default();
                let field = value["error"]["field"].as_str().filter(|field| !message.contains(*field));
                let hint =
                    if status == 401 { format!(" (the token came from {})", self.token_from) } else { String::new() };
                let prefix = field.map_or(String::new(), |field| format!("{field}: "));
                Err(Failure::Refused(format!("{prefix}{message}{hint}")))
            }
            _ => {
                let url = &self.url;
                Err(Failure::Refused(format!(
                    "{url} answered {status}, but not as an Admin API does; check the address"
                )))
            }
        }
    }
}

/// A URL that the token may be sent to, without a slash at its end.
fn checked_url(url: &str) -> Result<String, Failure> {
    let wrong = |problem: &str| Err(Failure::Usage(format!("admin URL {url:?}: {problem}")));
    let Ok(uri) = url.trim().parse::<Uri>() else {
        return wrong("expected one such as http://127.0.0.1:8081");
    };
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(Failure::Usage("the admin URL must not carry credentials; use CLAUDE_RELAY_ADMIN_TOKEN".into()));
    }
    match uri.scheme_str() {
        Some("http") if uri.query().is_none() => Ok(url.trim().trim_end_matches('/').to_owned()),
        Some("https") => wrong("the relay's admin listener speaks plain http; reach a far one through an SSH tunnel"),
        _ => wrong("expected one such as http://127.0.0.1:8081"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(flags: &ClientFlags, env: &[(&str, &str)]) -> Result<Relay, Failure> {
        Relay::find_with(flags, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn flags(dir: Option<&str>, url: Option<&str>) -> ClientFlags {
        ClientFlags { data_dir: dir.map(Into::into), admin_url: url.map(Into::into), json: false }
    }

    #[test]
    fn a_flag_comes_before_the_environment_and_a_url_before_a_directory() {
        let env = [("CLAUDE_RELAY_ADMIN_URL", "http://env:1/"), ("CLAUDE_RELAY_ADMIN_TOKEN", "t")];
        assert_eq!(find(&flags(None, None), &env).unwrap().url, "http://env:1");
        assert_eq!(find(&flags(None, Some("http://flag:1")), &env).unwrap().url, "http://flag:1");
        let error = find(&flags(Some("/nonexistent"), None), &env).unwrap_err();
        assert_eq!(error.code(), 3, "{error}");
        assert!(error.to_string().ends_with("claude-relay serve --data-dir /nonexistent"), "{error}");
    }

    #[test]
    fn a_url_without_a_token_or_with_credentials_is_wrong_usage() {
        assert_eq!(find(&flags(None, Some("http://h:1")), &[]).unwrap_err().code(), 2);
        for url in ["https://h", "h:1", "ftp://h", "http://h?a=b", "", "http://u:s3cret@h"] {
            let error = find(&flags(None, Some(url)), &[("CLAUDE_RELAY_ADMIN_TOKEN", "t")]).unwrap_err();
            assert_eq!(error.code(), 2, "{url}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn an_answer_is_judged_by_status_and_shape() {
        let relay = find(&flags(None, Some("http://h:1")), &[("CLAUDE_RELAY_ADMIN_TOKEN", "t")]).unwrap();
        assert!(relay.judge(201, b"{}").is_ok());
        let said = |status, body: &str| relay.judge(status, body.as_bytes()).unwrap_err().to_string();
        assert_eq!(said(400, r#"{"error":{"code":"c","field":"name","message":"required"}}"#), "name: required");
        assert_eq!(said(400, r#"{"error":{"code":"c","field":"name","message":"name: required"}}"#), "name: required");
        assert!(said(401, r#"{"error":{"message":"no"}}"#).contains("CLAUDE_RELAY_ADMIN_TOKEN"));
        for (status, body) in [(200, "<html>"), (404, "{}"), (307, ""), (200, "")] {
            assert!(said(status, body).contains("check the address"), "{status} {body}");
        }
    }
}
