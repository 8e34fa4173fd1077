//! HTTP for tests that aren't asynchronous.

use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;

use super::PATIENCE;

/// Asks over HTTP, from tests that aren't asynchronous.
pub struct Web {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The code of an answer that is an error of the API.
    pub fn code(&self) -> Option<String> {
        let answer: pushgate_formats::api::ErrorAnswer = serde_json::from_slice(&self.body).ok()?;
        Some(answer.error.code)
    }

    pub fn json<T: for<'de> Deserialize<'de>>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.text()))
    }
}

impl Default for Web {
    fn default() -> Self {
        Self::new()
    }
}

impl Web {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .expect("an HTTP client");
        Self { runtime, client }
    }

    /// One request; `None` where nobody answers.
    pub fn try_ask(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Option<Answer> {
        let mut request = self.client.request(method.clone(), url).body(body);
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header's name");
            request = request.header(name, HeaderValue::from_str(value).expect("a header's value"));
        }
        self.runtime.block_on(async {
            let response = request.send().await.ok()?;
            let (status, headers) = (response.status(), response.headers().clone());
            Some(Answer { status, headers, body: response.bytes().await.ok()?.to_vec() })
        })
    }

    #[track_caller]
    pub fn ask(&self, method: &Method, url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.try_ask(method, url, headers, body).unwrap_or_else(|| panic!("no answer: {method} {url}"))
    }

    pub fn try_get(&self, url: &str) -> Option<Answer> {
        self.try_ask(&Method::GET, url, &[], vec![])
    }

    #[track_caller]
    pub fn get(&self, url: &str) -> Answer {
        self.ask(&Method::GET, url, &[], vec![])
    }
}
