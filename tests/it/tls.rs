//! Upstreams over TLS, as every real one is: a certificate that is trusted, one that is not, and cuts.

use crate::fake_upstream::{Cut, FakeUpstream, Reply, Usage};
use crate::raw_client::Ended;
use crate::relay_app::{TestRelay, message, stream};
use serde_json::json;
use std::sync::Arc;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

/// Speaks TLS as `localhost` in front of a fake upstream. `abrupt` leaves the close_notify out at the end.
async fn terminate(upstream: &FakeUpstream, abrupt: bool) -> (u16, NamedTempFile) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (port, behind) = (listener.local_addr().unwrap().port(), upstream.port());
    actix_rt::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            actix_rt::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "HTTP/2 was offered");
                let mut plain = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                let (mut up, mut down) = ([0; 4096], [0; 4096]);
                loop {
                    tokio::select! {
                        read = tls.read(&mut up) => match read {
                            Ok(n) if n > 0 => plain.write_all(&up[..n]).await.unwrap(),
                            _ => return,
                        },
                        read = plain.read(&mut down) => match read {
                            Ok(n) if n > 0 => tls.write_all(&down[..n]).await.unwrap(),
                            _ => break,
                        },
                    }
                }
                let _ = tls.flush().await;
                if !abrupt {
                    let _ = tls.shutdown().await;
                }
            });
        }
    });
    (port, file)
}

async fn relay_with(upstream: &FakeUpstream, abrupt: bool, trusted: bool) -> (TestRelay, String, NamedTempFile) {
    let (port, file) = terminate(upstream, abrupt).await;
    let path = file.path().to_owned();
    let relay = TestRelay::start_with(|s| s.upstream.ca_file = if trusted { path } else { Default::default() }).await;
    let endpoint = format!("https://localhost:{port}/api");
    relay.add_account("a", upstream, json!({"custom_api_endpoint": endpoint})).await;
    let key = relay.add_key(json!({})).await;
    (relay, key, file)
}

#[actix_rt::test]
async fn a_trusted_upstream_is_reached_and_its_host_is_named() {
    let upstream = FakeUpstream::start();
    let (relay, key, _file) = relay_with(&upstream, false, true).await;
    for _ in 0..3 {
        let answer = relay.send(stream(&key)).await;
        assert_eq!((answer.status, answer.ended), (200, Ended::Complete));
    }
    let seen = upstream.requests().pop().unwrap();
    assert_eq!(seen.path, "/api/v1/messages");
    assert!(seen.header("host").unwrap().starts_with("localhost:"));
}

#[actix_rt::test]
async fn an_untrusted_certificate_gets_no_byte_of_a_request() {
    let upstream = FakeUpstream::start();
    let (relay, key, _file) = relay_with(&upstream, false, false).await;
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (502, Some("upstream_unreachable")));
    assert_eq!(upstream.bytes_received(), 0);
}

#[actix_rt::test]
async fn a_cut_is_a_cut_with_close_notify_and_without() {
    for abrupt in [false, true] {
        let upstream = FakeUpstream::start();
        let (relay, key, _file) = relay_with(&upstream, abrupt, true).await;
        for reply in [
            Reply::stream(&["one", "two"], USAGE).cut(700, Cut::Fin),
            Reply::message("a long answer", USAGE).cut(30, Cut::Fin),
            Reply::message("a long answer", USAGE).chunked().cut(30, Cut::Fin),
        ] {
            upstream.next(reply);
            let answer = relay.send(stream(&key)).await;
            assert_ne!(answer.ended, Ended::Complete, "{}", answer.text());
        }
        assert_eq!(relay.endings().await, [("upstream_cut".to_owned(), 3)]);
    }
}
