//! Clients that generators make of the API's description: the two that are made in seconds. The slow tests make those of all generators.

use std::fs;

use anyhow::{Context, Result};
use tools::workspace::Workspace;

use super::harness::clients::{CLIENTS, Client, OAPI_CODEGEN, OPENAPI_TYPESCRIPT};

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_go_client_reads_orders_and_problems() -> Result<()> {
    OAPI_CODEGEN.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_typescript_types_fit_orders_and_problems() -> Result<()> {
    OPENAPI_TYPESCRIPT.works().await
}

#[test]
fn the_guide_names_the_generators_and_shows_the_programs_that_are_tested() -> Result<()> {
    let path = Workspace::required()?.root().join("docs/guides/clients.md");
    let guide = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for client in &CLIENTS {
        let command = client.generate("http://127.0.0.1:8080")?;
        assert!(guide.contains(&command), "{}: {command}", client.generator);
        for dependency in client.go_dependencies() {
            assert!(guide.contains(dependency), "{}: {dependency}", client.generator);
        }
        for package in client.kits.iter().filter_map(|kit| kit.packages().first()) {
            assert!(guide.contains(package), "{}: {package}", client.generator);
        }
        if let Some(example) = client.example() {
            assert!(guide.contains(&example), "{}:\n{example}", client.generator);
        }
    }
    assert_eq!(CLIENTS.iter().filter_map(Client::example).count(), 4, "Python, Go, TypeScript, Java");
    Ok(())
}
