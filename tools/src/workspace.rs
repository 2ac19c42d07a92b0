//! Where we are: the workspace, its `.dev` folder, cargo, and the executables beside us.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::stack::Launch;

/// A checkout of this repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace around the working folder. `None` outside of a checkout, as for an operator who has only the executables.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::around(&std::env::current_dir().ok()?)
    }

    fn around(start: &Path) -> Option<Self> {
        start
            .ancestors()
            .find(|folder| {
                let is_root = std::fs::read_to_string(folder.join("Cargo.toml"))
                    .is_ok_and(|manifest| manifest.contains("[workspace]"));
                is_root && folder.join("tools/src/stack.rs").exists()
            })
            .map(|root| Self { root: root.to_owned() })
    }

    /// Like [`Workspace::find`], for commands that make no sense elsewhere.
    pub fn required() -> Result<Self> {
        Self::find().context("this is no checkout of Outrider; run it inside of one")
    }

    /// Its topmost folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A run of cargo in this workspace.
    #[must_use]
    pub fn cargo(&self) -> Launch {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Launch::new("cargo", program).current_dir(&self.root)
    }
}

/// The folder for what is fetched and kept for development: `.dev` in the workspace, or in the working folder.
pub fn dev_folder() -> Result<PathBuf> {
    let base = match Workspace::find() {
        Some(workspace) => workspace.root,
        None => std::env::current_dir().context("there is no working folder")?,
    };
    Ok(base.join(".dev"))
}

/// Our own executable, and the services' beside it.
#[derive(Debug, Clone)]
pub struct Executables {
    outrider: PathBuf,
}

impl Executables {
    /// Those of this process. To be called early: a build that replaces our file takes away its name.
    pub fn own() -> Result<Self> {
        let outrider = std::env::current_exe().context("cannot find our own executable")?;
        Ok(Self { outrider })
    }

    /// The `outrider` executable.
    #[must_use]
    pub fn outrider(&self) -> &Path {
        &self.outrider
    }

    /// The folder that it and the services are in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.outrider.parent().unwrap_or(Path::new("/"))
    }

    /// The arguments for cargo that build the services where we are, or `None` when this is no folder of cargo's.
    #[must_use]
    pub fn build_arguments(&self) -> Option<Vec<String>> {
        let profile = match self.folder().file_name()?.to_str()? {
            "debug" => "dev",
            other => other,
        };
        let target = self.folder().parent()?;
        // Cargo leaves this mark in the folders that it makes.
        target.join("CACHEDIR.TAG").exists().then(|| {
            let mut arguments =
                ["build", "--workspace", "--bins", "--profile", profile, "--target-dir"].map(str::to_owned).to_vec();
            arguments.push(target.display().to_string());
            // As `cargo dev` builds them: default features are for releases.
            arguments.extend((profile == "dev").then(|| "--no-default-features".to_owned()));
            arguments
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_found_from_a_folder_within() -> Result<()> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = Workspace::around(&here.join("src")).context("a workspace")?;
        assert_eq!(Some(workspace.root()), here.parent());
        assert_eq!(Workspace::around(Path::new("/")), None);
        Ok(())
    }

    #[test]
    fn services_are_built_with_our_own_profile_where_we_are() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let target = folder.path();
        let at = |path: &str| Executables { outrider: target.join(path) }.build_arguments();
        assert_eq!(at("debug/outrider"), None);
        std::fs::write(target.join("CACHEDIR.TAG"), "")?;
        let arguments = at("debug/outrider").context("a build")?.join(" ");
        assert!(arguments.contains("--profile dev --target-dir"), "{arguments}");
        let arguments = at("release/outrider").context("a build")?.join(" ");
        assert!(arguments.contains("--profile release"), "{arguments}");
        assert_eq!(at("elsewhere/bin/outrider"), None);
        Ok(())
    }
}
