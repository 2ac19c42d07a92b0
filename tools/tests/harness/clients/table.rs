//! All generators, their versions, and how each is used. This is the one place that pins them; a test holds the guide against it.

use super::Client;
use super::kit::Kit;

/// Java's generator, which makes clients in many languages, as pip brings it.
const OPENAPI_GENERATOR_CLI: Kit = Kit::Python(&[
    "openapi-generator-cli==7.26.0",
    "urllib3==2.8.0",
    "pydantic==2.14.4",
    "python-dateutil==2.9.0.post0",
]);

pub(crate) const OPENAPI_PYTHON_CLIENT: Client = Client {
    generator: "openapi-python-client",
    kits: &[Kit::Python(&["openapi-python-client==0.29.1"])],
    file: "main.py",
    text: include_str!("../../clients/openapi_python_client/main.py"),
    commands: &[
        "openapi-python-client generate --url {url}/openapi.json --meta none --output-path outrider_client",
        "python3 main.py {url} {newer}",
    ],
};

pub(crate) const OPENAPI_GENERATOR_PYTHON: Client = Client {
    generator: "openapi-generator, Python",
    kits: &[OPENAPI_GENERATOR_CLI],
    file: "client/main.py",
    text: include_str!("../../clients/openapi_generator_python/main.py"),
    commands: &[
        "openapi-generator-cli generate -g python -i {url}/openapi.json -o client",
        "python3 client/main.py {url} {newer}",
    ],
};

pub(crate) const OPENAPI_GENERATOR_JAVA: Client = Client {
    generator: "openapi-generator, Java",
    kits: &[OPENAPI_GENERATOR_CLI],
    file: "client/src/main/java/Main.java",
    text: include_str!("../../clients/openapi_generator_java/Main.java"),
    commands: &[
        "openapi-generator-cli generate -g java --library native -i {url}/openapi.json -o client",
        "mvn --batch-mode --quiet --file client/pom.xml package -DskipTests -Dmaven.javadoc.skip=true",
        "java -cp client/target/classes:client/target/lib/* Main {url} {newer}",
    ],
};

pub(crate) const OPENAPI_GENERATOR_TYPESCRIPT: Client = Client {
    generator: "openapi-generator, TypeScript",
    kits: &[OPENAPI_GENERATOR_CLI, Kit::Node(&["typescript@5.9.3", "@types/node@20.19.43"])],
    file: "main.ts",
    text: include_str!("../../clients/openapi_generator_typescript/main.ts"),
    commands: &[
        "openapi-generator-cli generate -g typescript-fetch -i {url}/openapi.json -o client --additional-properties=importFileExtension=.js",
        COMPILE,
        "node out/main.js {url} {newer}",
    ],
};

pub(crate) const OPENAPI_TYPESCRIPT: Client = Client {
    generator: "openapi-typescript",
    kits: &[Kit::Node(&[
        "openapi-typescript@7.13.0",
        "openapi-fetch@0.17.0",
        "typescript@5.9.3",
        "@types/node@20.19.43",
    ])],
    file: "main.ts",
    text: include_str!("../../clients/openapi_typescript/main.ts"),
    commands: &[
        "openapi-typescript {url}/openapi.json --output schema.d.ts",
        COMPILE,
        "node out/main.js {url} {newer}",
    ],
};

pub(crate) const ORVAL: Client = Client {
    generator: "orval",
    // It needs a newer Node.js than many machines have, so it brings one.
    kits: &[Kit::Node(&["orval@8.38.0", "node@22.23.3", "typescript@5.9.3", "@types/node@20.19.43"])],
    file: "main.ts",
    text: include_str!("../../clients/orval/main.ts"),
    commands: &[
        "orval --input {url}/openapi.json --output client.ts --client fetch",
        COMPILE,
        "node out/main.js {url} {newer}",
    ],
};

pub(crate) const OAPI_CODEGEN: Client = Client {
    generator: "oapi-codegen",
    kits: &[Kit::Go],
    file: "main.go",
    text: include_str!("../../clients/oapi_codegen/main.go"),
    commands: &[
        "mkdir orders",
        "go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -generate types,client -package orders -o orders/orders.gen.go {url}/openapi-3.0.json",
        "go mod init example.com/client",
        "go get github.com/oapi-codegen/runtime@v1.9.0",
        "go run . {url} {newer}",
    ],
};

pub(crate) const OGEN: Client = Client {
    generator: "ogen",
    kits: &[Kit::Go],
    file: "main.go",
    text: include_str!("../../clients/ogen/main.go"),
    commands: &[
        "go run github.com/ogen-go/ogen/cmd/ogen@v1.25.0 --target orders --package orders {url}/openapi-3.0.json",
        "go mod init example.com/client",
        "go get github.com/ogen-go/ogen@v1.25.0",
        "go mod tidy",
        "go run . {url} {newer}",
    ],
};

/// All of them.
pub(crate) const CLIENTS: [Client; 8] = [
    OPENAPI_PYTHON_CLIENT,
    OPENAPI_GENERATOR_PYTHON,
    OPENAPI_GENERATOR_JAVA,
    OPENAPI_GENERATOR_TYPESCRIPT,
    OPENAPI_TYPESCRIPT,
    ORVAL,
    OAPI_CODEGEN,
    OGEN,
];

/// Strict, as projects of today are.
const COMPILE: &str = "tsc --strict --module nodenext --target es2022 --outDir out main.ts";
