//! What a container's image is made of beside the programs (`targets/linux/container/Containerfile`).

use crate::linux;
use crate::tree::Tree;

/// The recipe and what it copies, to lie in a folder `container` beside the folder `bin` of the programs.
#[must_use]
pub fn context() -> Tree {
    let config = linux::changed(linux::AGENT_TOML, "/var/lib/flotilla-agent", "/state");
    Tree::default()
        .data("Containerfile", asset!("linux/container/Containerfile"))
        .data("agent.toml", linux::changed(config.as_bytes(), "/srv/flotilla", "/files"))
        // Folders without a file are not copied everywhere.
        .data("state/README", "Who the agent is, and what jobs brought, lie in folders like this one.\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_recipe_copies_is_there() {
        let tree = context();
        let recipe = tree.get("Containerfile").expect("there").bytes.clone();
        let recipe = String::from_utf8(recipe).expect("text");
        let copied = recipe
            .lines()
            .filter_map(|line| line.split_whitespace().find_map(|w| w.strip_prefix("container/")));
        let mut found = 0;
        for name in copied {
            assert!(
                tree.files().any(|(path, _)| path == name || path.starts_with(&format!("{name}/"))),
                "{name}"
            );
            found += 1;
        }
        assert_eq!(found, 3);
    }
}
