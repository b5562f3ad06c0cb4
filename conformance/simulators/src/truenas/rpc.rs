//! JSON-RPC 2.0 over a WebSocket, at `/api/current` and `/api/v25.04.0`.

use serde_json::{Value, json};

use super::failure::Failure;
use super::{answers, methods, system};
use crate::core::{Array, Effect, Job};
use crate::http::Talk;

/// Calls of a connection that are carried out at the same time, and those that may be open: the
/// soft and the hard limit of the middleware's `RpcWebSocketHandler`.
const AT_ONCE: (usize, usize) = (10, 20);

/// A conversation.
#[derive(Default)]
pub(super) struct Conversation {
    /// The array and the token of the session, once somebody has logged in.
    session: Option<(Array, String)>,
    jobs: bool,
    /// Jobs that were told of, with the state that was told.
    told: Vec<(String, String)>,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some((array, token)) = self.session.take() {
            array.sessions().close(&token);
        }
    }
}

fn parse(message: &str) -> Option<(Value, String, Vec<Value>)> {
    let object: Value = serde_json::from_str(message).ok()?;
    if object.get("jsonrpc")? != "2.0" {
        return None;
    }
    let params = match object.get("params") {
        None => Vec::new(),
        Some(Value::Array(params)) => params.clone(),
        Some(_) => return None,
    };
    let id = object.get("id").cloned().unwrap_or(Value::Null);
    Some((id, object.get("method")?.as_str()?.to_owned(), params))
}

fn failed(id: &Value, error: &Value) -> String {
    json!({"jsonrpc": "2.0", "error": error, "id": id}).to_string()
}

impl Talk for Conversation {
    fn at_once(&self) -> (usize, usize) {
        AT_ONCE
    }

    fn call(&self, message: &str) -> String {
        parse(message).map_or_else(|| "nonsense".to_owned(), |(_, method, _)| method)
    }

    fn reads(&self, call: &str) -> bool {
        methods::reads(call)
    }

    fn refusal(&self, message: &str, status: u16) -> String {
        let id = parse(message).map_or(Value::Null, |(id, _, _)| id);
        match status {
            401 => failed(&id, &Failure::NotAuthenticated.error()),
            429 | 503 => {
                let text =
                    format!("Maximum number of concurrent calls ({}) has exceeded", AT_ONCE.1);
                failed(&id, &json!({"code": -32000, "message": text}))
            }
            _ => failed(&id, &Failure::call("Internal error").error()),
        }
    }

    fn answer(&mut self, array: &Array, message: &str, effect: Option<&Effect>) -> Vec<String> {
        let Some((id, method, params)) = parse(message) else {
            let error = json!({"code": -32600, "message": "Invalid request"});
            return vec![failed(&Value::Null, &error)];
        };
        if matches!(effect, Some(Effect::EndSession))
            && let Some((_, token)) = &self.session
        {
            array.sessions().close(token);
        }
        let answer = self.call_method(array, &method, &params, effect);
        let checked = answer.and_then(|result| answers::check(&method, &result).map(|()| result));
        let answer = match checked {
            Ok(result) => json!({"jsonrpc": "2.0", "result": result, "id": id}).to_string(),
            Err(failure) => failed(&id, &failure.error()),
        };
        let mut answers = vec![answer];
        answers.extend(self.news(array));
        answers
    }
}

impl Conversation {
    fn call_method(
        &mut self,
        array: &Array,
        method: &str,
        params: &[Value],
        effect: Option<&Effect>,
    ) -> Result<Value, Failure> {
        let text = |at: usize| params.get(at).and_then(Value::as_str).unwrap_or("");
        let key = system::setting(array, "api_key", super::API_KEY);
        let user = system::setting(array, "user", super::USER);
        let password = system::setting(array, "password", super::PASSWORD);
        match method {
            "core.ping" => return Ok(json!("pong")),
            "auth.login_with_api_key" => {
                let good = text(0) == key;
                return self.open(array, good).map(|()| json!(good));
            }
            "auth.login" => {
                let good = text(0) == user && text(1) == password;
                return self.open(array, good).map(|()| json!(good));
            }
            "auth.login_ex" => {
                let data = params.first().cloned().unwrap_or(Value::Null);
                let field = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or("");
                let good = field("username") == user
                    && match field("mechanism") {
                        "API_KEY_PLAIN" => field("api_key") == key,
                        "PASSWORD_PLAIN" => field("password") == password,
                        _ => false,
                    };
                self.open(array, good)?;
                return Ok(if good {
                    json!({"response_type": "SUCCESS", "user_info": null, "authenticator": "LEVEL_1"})
                } else {
                    json!({"response_type": "AUTH_ERR"})
                });
            }
            _ => {}
        }
        let session = self.session.as_ref().and_then(|(_, token)| array.sessions().touch(token));
        let Some(session) = session else { return Err(Failure::NotAuthenticated) };
        match method {
            "auth.me" => Ok(json!({
                "pw_name": session.user, "pw_gecos": "", "pw_dir": "/root", "pw_shell": "/bin/sh",
                "pw_uid": 0, "pw_gid": 0, "grouplist": null, "sid": null, "source": "LOCAL",
                "local": true, "attributes": {}, "two_factor_config": {}, "privilege": {},
                "account_attributes": ["LOCAL"],
            })),
            "auth.logout" => {
                if let Some((_, token)) = self.session.take() {
                    array.sessions().close(&token);
                }
                Ok(json!(true))
            }
            "core.subscribe" => {
                self.jobs |= text(0) == "core.get_jobs";
                Ok(json!("00000000-0000-0000-0000-000000000001"))
            }
            _ => methods::call(array, method, params, effect),
        }
    }

    fn open(&mut self, array: &Array, good: bool) -> Result<(), Failure> {
        if !good {
            return Ok(());
        }
        let user = system::setting(array, "user", super::USER);
        let token = array.sessions().open(&user).map_err(|many| Failure::call(many.to_string()))?;
        if let Some((_, old)) = self.session.replace((array.clone(), token)) {
            array.sessions().close(&old);
        }
        Ok(())
    }

    /// What became of jobs since the last message, for those who asked to hear of it.
    fn news(&mut self, array: &Array) -> Vec<String> {
        if !self.jobs {
            return Vec::new();
        }
        let now = array.clock().now();
        let mut news = Vec::new();
        for (id, job) in array.current().all::<Job>() {
            let fields = system::job(&id, &job, now);
            let state = fields.get("state").and_then(Value::as_str).unwrap_or("").to_owned();
            let before = self.told.iter().position(|(told, _)| *told == id);
            let message = match before.and_then(|at| self.told.get_mut(at)) {
                Some((_, told)) if *told == state => continue,
                Some((_, told)) => {
                    *told = state;
                    "changed"
                }
                None => {
                    self.told.push((id.clone(), state));
                    "added"
                }
            };
            let number = id.parse::<u64>().unwrap_or(0);
            news.push(
                json!({"jsonrpc": "2.0", "method": "collection_update", "params": {
                    "msg": message, "collection": "core.get_jobs", "id": number, "fields": fields,
                }})
                .to_string(),
            );
        }
        news
    }
}
