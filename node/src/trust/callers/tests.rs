use std::{fs, path::Path};

use http::HeaderValue;
use serde_json::json;

use super::*;
use crate::trust::tokens::tests::{Issuer, claims, settings};

fn module(name: &str) -> ModuleName {
    ModuleName::parse(name).unwrap()
}

fn known() -> BTreeMap<ModuleName, Vec<String>> {
    let services = |services: &[&str]| services.iter().map(ToString::to_string).collect();
    [("orders", &["shop.v1.Orders"][..]), ("cart", &["shop.v1.Cart"]), ("payment", &["shop.v1.Payment"])]
        .map(|(name, names)| (module(name), services(names)))
        .into()
}

/// A policy, and an issuer whose tokens are believed.
fn load(folder: &Path, policy: &str, mode: CallersMode) -> (CallPolicy, Issuer) {
    let issuer = Issuer::new("1");
    fs::write(folder.join("keys.json"), json!({ "keys": [issuer.jwk()] }).to_string()).unwrap();
    fs::write(folder.join("policy.toml"), policy).unwrap();
    let tokens = crate::config::TokenSettings { keys: folder.join("keys.json"), ..settings() };
    let callers = CallerSettings { policy: Some(folder.join("policy.toml")), mode, tokens: Some(tokens) };
    (CallPolicy::load(&callers, UnmarkedModules::Refuse, known(), true).unwrap(), issuer)
}

fn headers(authorization: &[&str]) -> HeaderMap {
    let value = |value: &&str| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
    authorization.iter().map(value).collect()
}

/// One that is good for a long time by the clock of the machine.
fn good(issuer: &Issuer) -> String {
    issuer.token(&claims(&json!({ "exp": 99_999_999_999_u64 })))
}

#[test]
fn a_client_is_who_its_token_and_its_certificate_say() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, issuer) = load(folder.path(), "", CallersMode::Enforce);
    let certified = Certified { client: Arc::new(Client::new(Some("web".to_owned()), None)), expires: Duration::MAX };
    let token = good(&issuer);
    let client = |authorization: &[&str], certified| policy.client(&headers(authorization), certified);

    assert_eq!(client(&[], None), Ok(None));
    assert_eq!(client(&["Basic YTpi"], None), Ok(None), "of another kind, which is the module's to read");
    assert_eq!(client(&[], Some(&certified)).unwrap().unwrap().certificate(), Some("web"));
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let client = client(&[&format!("{scheme} {token}")], Some(&certified)).unwrap().unwrap();
        assert_eq!((client.certificate(), client.token().unwrap().subject()), (Some("web"), "alice"));
    }
    let bad = |problem| Err(Refused::Token(problem));
    assert_eq!(client(&["Bearer nonsense"], Some(&certified)), bad(BadToken::NotAToken));
    let twice = format!("Bearer {token}");
    assert_eq!(client(&[&twice, &twice], None), bad(BadToken::NotAToken));
    let other = format!("Bearer {}", good(&Issuer::new("1")));
    assert_eq!(client(&[&other], None), bad(BadToken::Signature));
    assert_eq!(client(&["Bearer"], None), bad(BadToken::NotAToken));
    assert_eq!(client(&[&format!("Bearer\t{token}")], None).unwrap().unwrap().token().unwrap().subject(), "alice");
    let expired = Certified { expires: Duration::from_secs(1_000_000_000), ..certified.clone() };
    assert_eq!(client(&[&twice], Some(&expired)), Err(Refused::Expired), "it goes on with its connection");
}

#[test]
fn what_the_policy_does_not_say_the_module_does() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[orders]\nclients = [\"token\"]\n[cart]\nmodules = [\"orders\"]\n[payment]\nclients = [\"anyone\"]";
    let (policy, issuer) = load(folder.path(), text, CallersMode::Enforce);
    let alice = policy.client(&headers(&[&format!("Bearer {}", good(&issuer))]), None).unwrap();
    let admits = |name: &str, exposed, client: Option<&Arc<Client>>| {
        policy.admits(&module(name), exposed, "/shop.v1.X/Y", client.map(|client| &**client))
    };
    assert_eq!(admits("orders", Exposed::Public, None), Err(Refused::Nameless(module("orders"))));
    assert_eq!(admits("orders", Exposed::Unmarked, alice.as_ref()), Ok(()), "the policy says that it may be called");
    assert_eq!(admits("cart", Exposed::Public, None), Ok(()));
    assert!(admits("cart", Exposed::Unmarked, alice.as_ref()).is_err(), "as `ingress.unmarked_modules` has it");
    let internal = policy.admit((&module("payment"), Exposed::Internal), "/shop.v1.X/Y", &HeaderMap::new(), None);
    assert!(matches!(internal, Err(Refused::Client { .. })), "no policy opens what is internal: {internal:?}");
    let exposes = |name, exposed| policy.exposes(&module(name), exposed);
    assert!(exposes("orders", Exposed::Unmarked) && exposes("cart", Exposed::Public));
    assert!(!exposes("cart", Exposed::Unmarked) && !exposes("payment", Exposed::Internal));
}

#[test]
fn an_audit_refuses_what_would_be_without_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[orders]\nclients = []\nmodules = []";
    let (policy, _) = load(folder.path(), text, CallersMode::Audit);
    assert_eq!(policy.client(&headers(&["Bearer nonsense"]), None), Ok(None));
    assert_eq!(policy.admits(&module("orders"), Exposed::Public, "/shop.v1.Orders/Get", None), Ok(()));
    assert_eq!(policy.admits_module(&module("cart"), &module("orders"), "/shop.v1.Orders/Get"), Ok(()));
    assert_eq!(policy.undeclared(&module("cart"), &module("orders"), "/shop.v1.Orders/Get"), Ok(()));
    // What the module itself would refuse, if there were no policy.
    assert!(policy.admits(&module("orders"), Exposed::Unmarked, "/shop.v1.Orders/Get", None).is_err());
    let internal = policy.admit((&module("orders"), Exposed::Internal), "/shop.v1.Orders/Get", &HeaderMap::new(), None);
    assert!(internal.is_err());
    assert!(policy.is_first("something else") && !policy.is_first("something else"));
}

/// What is remembered of a module's handle holds for one version of the policy.
#[test]
fn a_changed_policy_counts_for_handles_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, _) = load(folder.path(), "[orders]\nmodules = [\"cart\"]", CallersMode::Enforce);
    let (cart, to) = (CallingModule::new(module("cart")), module("orders"));
    let admits = |method: &str| policy.admits_caller(&cart, &to, &format!("/shop.v1.Orders/{method}")).is_ok();
    let change = |text: &str| {
        fs::write(folder.path().join("policy.toml"), text).unwrap();
        policy.follows().for_each(|follows| (0..2).for_each(|_look| follows.follow()));
    };
    assert!(admits("Get") && admits("Get"));
    change("[orders]\nmodules = []");
    assert!(!admits("Get") && !admits("Get"));
    change("[orders]\n[orders.methods.\"shop.v1.Orders/Refund\"]\nmodules = []");
    assert!(admits("Get") && !admits("Refund") && admits("Get"));
    change("");
    assert!(admits("Get") && admits("Refund") && admits("Refund"));
    change("[orders]\nmodules = [\"payment\"]");
    assert!(!admits("Get") && !admits("Refund"));
}

#[test]
fn a_policy_on_what_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        let callers = CallerSettings { policy: Some(path.clone()), ..CallerSettings::default() };
        CallPolicy::load(&callers, UnmarkedModules::Serve, known(), false)
    };
    let fault = |text| load(text).unwrap_err().to_string();
    let unknown = fault("[order]\nclients = []");
    assert!(unknown.contains("`callers.policy`") && unknown.contains("`order`"), "{unknown}");
    assert!(unknown.contains("cart, orders, payment"), "{unknown}");
    let unknown = fault("[orders.methods.\"shop.v1.Order/Get\"]\nclients = []");
    assert!(unknown.contains("`orders`") && unknown.contains("`shop.v1.Order`"), "{unknown}");
    assert!(unknown.contains("shop.v1.Orders"), "{unknown}");
    assert!(fault("[orders]\nmodules = [\"crat\"]").contains("`crat`"));
    assert!(fault("[orders]\nclients = [\"scope:a\"]").contains("`callers.tokens`"));
    assert!(fault("[orders]\nclients = [\"certificate\"]").contains("`ingress.tls.client_authorities`"));
    assert!(load("[orders.methods.\"shop.v1.Orders/Get\"]\nclients = []").is_ok());
}
