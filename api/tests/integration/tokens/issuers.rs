//! Tokens as the issuers of `docs/guides/tokens` make them: each test sets the variables of a page and sends its tokens.

use std::collections::BTreeMap;

use api::auth::settings::AuthConfig;
use jsonwebtoken::get_current_timestamp;
use serde_json::{Value, json};
use shared::config::Env;
use shared::testing::TestDatabase;

use super::issuer::{Issuer, Signer};
use super::{header_of, ready};
use crate::auth::ask;
use crate::service::Api;

/// A page of the guide: its variables, and the tokens that it shows.
struct Page {
    variables: BTreeMap<String, String>,
    tokens: Vec<Value>,
}

impl Page {
    fn read(text: &str) -> Self {
        let tokens = blocks(text, "json").map(|block| serde_json::from_str(block).expect("a token of the page"));
        let first = blocks(text, "sh").next().expect("the page has variables");
        let pairs = first.lines().map(|line| line.split_once('=').expect("NAME=VALUE"));
        let variables = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { variables, tokens: tokens.collect() }
    }

    /// A token of the page, issued now, and with these claims changed: null takes one away.
    fn token(&self, number: usize, change: &Value) -> Value {
        let mut token = self.tokens[number].clone();
        let now = get_current_timestamp();
        for (claim, time) in [("iat", now), ("nbf", now), ("auth_time", now), ("exp", now + 300)] {
            if token.get(claim).is_some() {
                token[claim] = time.into();
            }
        }
        for (claim, value) in change.as_object().expect("claims") {
            token[claim] = value.clone();
        }
        token.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
        token
    }
}

/// The code blocks of a kind.
fn blocks<'a>(text: &'a str, kind: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("```{kind}\n");
    text.split("```\n\n").filter_map(move |part| part.split_once(&start).map(|(_, block)| block.trim_end()))
}

/// An API with the variables of a page, whose issuer is one of ours.
struct Guarded {
    api: Api,
    signer: Signer,
    /// Its server ends with it.
    _issuer: Issuer,
}

impl Guarded {
    /// With the variables of the page, changed: an empty one counts as not set.
    async fn start(database: &TestDatabase, page: &Page, change: &[(&str, &str)]) -> Self {
        let signer = Signer::rsa("k");
        let issuer = Issuer::start(&[&signer]).await;
        let mut variables = page.variables.clone();
        variables.insert("API_JWT_JWKS_URL".to_owned(), issuer.url().to_string());
        variables.extend(change.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let auth = AuthConfig::from_env(&Env::from_pairs(variables)).expect("the variables of the page are good");
        let api = Api::guarded(database.config("outrider_api"), auth, |_| ()).await;
        ready(&api).await;
        Self { api, signer, _issuer: issuer }
    }

    /// What reading and writing are answered, with a header of the issuer's form.
    async fn answers(&self, header: &Value, claims: &Value) -> (u16, u16) {
        let token = header_of(&self.signer.sign_texts(&header.to_string(), &claims.to_string()));
        let read = ask(&self.api, "GET", "/orders", &token).await.status;
        (read, ask(&self.api, "POST", "/orders", &token).await.status)
    }

    /// Checks what each of these tokens may do.
    async fn expect<const N: usize>(&self, header: &Value, cases: [(&str, Value, (u16, u16)); N]) {
        for (what, claims, expected) in cases {
            assert_eq!(self.answers(header, &claims).await, expected, "{what}: {claims}");
        }
    }

    /// How many requests were refused for `reason`.
    async fn refused(&self, reason: &str) -> i64 {
        self.api.metric(&format!("api_auth_refused_total{{reason=\"{reason}\"}}")).await
    }
}

const BOTH: (u16, u16) = (200, 201);
const READ_ONLY: (u16, u16) = (200, 403);
const NOTHING: (u16, u16) = (403, 403);
const REFUSED: (u16, u16) = (401, 401);

#[tokio::test]
async fn cognito_names_the_client_and_scopes_of_a_resource_server() {
    let database = TestDatabase::create("cognito").await;
    let page = Page::read(include_str!("../../../../docs/guides/tokens/cognito.md"));
    let guarded = Guarded::start(&database, &page, &[]).await;
    // No `typ`.
    let header = json!({ "kid": "k", "alg": "RS256" });
    let program = |change: Value| page.token(0, &change);
    let id_token = page.token(
        1,
        &json!({
            "token_use": "id", "aud": "2example23456789abcdefghij", "at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng", "client_id": null,
            "cognito:username": "jane", "username": null, "scope": null, "email": "jane@example.com",
        }),
    );
    let cases = [
        ("a program", program(json!({})), BOTH),
        ("a user", page.token(1, &json!({})), READ_ONLY),
        ("another resource server", program(json!({ "scope": "stock.example.com/read" })), NOTHING),
        ("the scope alone", program(json!({ "scope": "read write" })), NOTHING),
        ("another client", program(json!({ "client_id": "3example23456789abcdefghij" })), REFUSED),
        ("no client", program(json!({ "client_id": null })), REFUSED),
        ("aud is not looked at", program(json!({ "client_id": null, "aud": "1example23456789abcdefghij" })), REFUSED),
        ("an ID token", id_token.clone(), REFUSED),
        ("no use", program(json!({ "token_use": null })), REFUSED),
        (
            "another user pool",
            program(json!({ "iss": page.variables["API_JWT_ISSUER"].replace("_Ex", "_ex") })),
            REFUSED,
        ),
    ];
    guarded.expect(&header, cases).await;
    guarded.api.stop().await;
    // Where somebody goes by `aud`, an ID token has the right one, and says itself that it is none.
    let changed = [
        ("API_JWT_AUDIENCE_CLAIM", ""),
        ("API_JWT_REQUIRED_CLAIMS", ""),
        ("API_JWT_SCOPES_CLAIM", "cognito:groups"),
        ("API_JWT_SCOPE_MAP", "clerks=orders:read"),
    ];
    let guarded = Guarded::start(&database, &page, &changed).await;
    guarded.expect(&header, [("an ID token", id_token, REFUSED)]).await;
    assert_eq!(guarded.refused("wrong_type").await, 2);
    let bound = page.token(1, &json!({ "aud": "1example23456789abcdefghij" }));
    guarded.expect(&header, [("groups, and a resource as audience", bound, READ_ONLY)]).await;
    guarded.api.stop().await;
}

#[tokio::test]
async fn auth0_lists_permissions() {
    let database = TestDatabase::create("auth0").await;
    let page = Page::read(include_str!("../../../../docs/guides/tokens/auth0.md"));
    let guarded = Guarded::start(&database, &page, &[]).await;
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "k" });
    let user = |change: Value| page.token(0, &change);
    let id_token = user(json!({
        "aud": "my3xampleCl13nt1d0000000000000ab", "nonce": "bm9uY2U", "sid": "c2lk", "azp": null, "scope": null,
    }));
    let cases = [
        ("a user", user(json!({})), BOTH),
        ("a program", page.token(1, &json!({})), READ_ONLY),
        ("fewer permissions", user(json!({ "permissions": ["orders:write"] })), (403, 201)),
        ("none", user(json!({ "permissions": [], "scope": "orders:read orders:write" })), NOTHING),
        ("of another API only", user(json!({ "aud": ["https://shop.eu.auth0.com/userinfo"] })), REFUSED),
        ("an ID token", id_token, REFUSED),
        ("the issuer without its slash", user(json!({ "iss": "https://shop.eu.auth0.com" })), REFUSED),
        ("another tenant", user(json!({ "iss": "https://shop.us.auth0.com/" })), REFUSED),
    ];
    guarded.expect(&header, cases).await;
    // The profile of RFC 9068.
    let profile = user(json!({ "azp": null, "client_id": "my3xampleCl13nt1d0000000000000ab", "jti": "73Wak" }));
    guarded.expect(&json!({ "alg": "RS256", "typ": "at+jwt", "kid": "k" }), [("RFC 9068", profile, BOTH)]).await;
    guarded.api.stop().await;
    // Without permissions, and with claims of one's own.
    let guarded = Guarded::start(&database, &page, &[("API_JWT_SCOPES_CLAIM", "")]).await;
    guarded.expect(&header, [("scope", page.token(1, &json!({})), READ_ONLY)]).await;
    guarded.api.stop().await;
    let own = [
        ("API_JWT_SCOPES_CLAIM", "https://example.com/roles"),
        ("API_JWT_SCOPE_MAP", "order clerk=orders:read"),
        ("API_JWT_USER_CLAIM", "https://example.com/user_id"),
    ];
    let guarded = Guarded::start(&database, &page, &own).await;
    let roles = json!({ "https://example.com/roles": ["order clerk"], "https://example.com/user_id": "17" });
    let unbound = json!({ "https://example.com/roles": ["order clerk"] });
    let cases = [("a clerk", user(roles), READ_ONLY), ("nobody's clerk", user(unbound), REFUSED)];
    guarded.expect(&header, cases).await;
    assert_eq!(guarded.refused("no_user").await, 2);
    guarded.api.stop().await;
}

#[tokio::test]
async fn entra_has_scopes_of_users_and_roles_of_programs() {
    let database = TestDatabase::create("entra").await;
    let page = Page::read(include_str!("../../../../docs/guides/tokens/entra.md"));
    let guarded = Guarded::start(&database, &page, &[]).await;
    let header = json!({ "typ": "JWT", "alg": "RS256", "kid": "k", "x5t": "k" });
    let user = |change: Value| page.token(0, &change);
    let program = |change: Value| page.token(1, &change);
    // The application and the API are one registration.
    let id_token =
        user(json!({ "azp": null, "azpacr": null, "scp": null, "nonce": "x", "roles": ["Orders.Write.All"] }));
    let tenant = "https://login.microsoftonline.com/eeeeffff-4444-aaaa-5555-bbbb6666cccc/v2.0";
    let version_1 = user(json!({
        "iss": "https://sts.windows.net/aaaabbbb-0000-cccc-1111-dddd2222eeee/", "aud": "api://00001111-aaaa-2222-bbbb-3333cccc4444",
        "appid": "11112222-bbbb-3333-cccc-4444dddd5555", "azp": null, "ver": "1.0",
    }));
    let cases = [
        ("a user", user(json!({})), READ_ONLY),
        ("a program", program(json!({})), BOTH),
        ("two scopes", user(json!({ "scp": "Orders.Read Orders.Write User.Read" })), BOTH),
        ("a user's role is not the application's", user(json!({ "roles": ["Orders.Write.All"] })), READ_ONLY),
        ("a program without roles", program(json!({ "roles": null })), NOTHING),
        ("another case", program(json!({ "roles": ["orders.read.all"] })), NOTHING),
        ("an ID token", id_token, REFUSED),
        ("Microsoft Graph", user(json!({ "aud": "00000003-0000-0000-c000-000000000000" })), REFUSED),
        ("another tenant", program(json!({ "iss": tenant })), REFUSED),
        ("version 1.0", version_1, REFUSED),
    ];
    guarded.expect(&header, cases).await;
    guarded.api.stop().await;
}

#[tokio::test]
async fn keycloak_has_roles_in_objects() {
    let database = TestDatabase::create("keycloak").await;
    let page = Page::read(include_str!("../../../../docs/guides/tokens/keycloak.md"));
    let guarded = Guarded::start(&database, &page, &[]).await;
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "k" });
    let user = |change: Value| page.token(0, &change);
    let other_client = json!({ "stock-api": { "roles": ["order-writer"] }, "orders-api": { "roles": [] } });
    let cases = [
        ("a user", user(json!({})), BOTH),
        ("a program", page.token(1, &json!({})), READ_ONLY),
        ("roles of another client", user(json!({ "resource_access": other_client })), NOTHING),
        ("roles of the realm only", user(json!({ "resource_access": null })), NOTHING),
        ("roles that are no list", user(json!({ "resource_access": { "orders-api": "order-writer" } })), NOTHING),
        ("for its own account", user(json!({ "aud": "account" })), REFUSED),
        ("an ID token", user(json!({ "typ": "ID", "aud": ["orders-api"] })), REFUSED),
        ("a refresh token", user(json!({ "typ": "Refresh" })), REFUSED),
        ("no type", user(json!({ "typ": null })), REFUSED),
        ("no subject", user(json!({ "sub": null })), REFUSED),
        ("another realm", user(json!({ "iss": "https://id.example.com/realms/master" })), REFUSED),
    ];
    guarded.expect(&header, cases).await;
    let option = [("RFC 9068", user(json!({})), BOTH)];
    guarded.expect(&json!({ "alg": "RS256", "typ": "at+jwt", "kid": "k" }), option).await;
    guarded.api.stop().await;
    let guarded = Guarded::start(&database, &page, &[("API_JWT_SCOPES_CLAIM", "realm_access.roles")]).await;
    guarded.expect(&header, [("roles of the realm", user(json!({})), READ_ONLY)]).await;
    guarded.api.stop().await;
    // A client that is called like a host, and the client that asks as the audience.
    let changed = [
        ("API_JWT_SCOPES_CLAIM", "resource_access.orders.example.com.roles"),
        ("API_JWT_AUDIENCE_CLAIM", "azp"),
        ("API_JWT_AUDIENCE", "shop-front-end, reports"),
    ];
    let guarded = Guarded::start(&database, &page, &changed).await;
    let dotted =
        json!({ "resource_access": { "orders.example.com": { "roles": ["order-writer"] } }, "aud": "account" });
    let stranger = json!({ "azp": "others", "aud": ["shop-front-end"] });
    let cases = [("dots", user(dotted), (403, 201)), ("another client", user(stranger), REFUSED)];
    guarded.expect(&header, cases).await;
    guarded.api.stop().await;
}
