//! Renders a description of modules for people: one rendering for the two programs that print it,
//! the application (`APP modules`) and the operator's tool (`outpost modules`).

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::admin::v1::{Cycle, Module};

/// Modules as a table for a terminal, one row a module, and a line for each loop among them.
pub fn table(modules: &[Module], cycles: &[Cycle]) -> String {
    let running = modules.iter().any(|module| module.state != "declared");
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec!["MODULE", "SERVICES", "CALLS"];
    if running {
        header.extend(["STATE", "PANICS"]);
    }
    table.set_header(header);
    for module in modules {
        let calls = match module.dependencies.as_slice() {
            [] => "-".to_owned(),
            names => names.join(", "),
        };
        let mut row = vec![module.name.clone(), module.services.join("\n"), calls];
        if running {
            row.extend([module.state.clone(), module.panics.to_string()]);
        }
        table.add_row(row);
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    for cycle in cycles {
        let _ = writeln!(text, "\nnote: these modules call each other in a circle: {}", cycle.modules.join(" -> "));
    }
    text
}

/// Modules as a [mermaid](https://mermaid.js.org) flow chart; an arrow is a declared dependency.
pub fn mermaid(modules: &[Module]) -> String {
    let mut text = "graph LR\n".to_owned();
    for module in modules {
        let _ = writeln!(text, "    {}[\"{}\"]", mermaid_id(&module.name), module.name);
    }
    for module in modules {
        for dependency in &module.dependencies {
            let _ = writeln!(text, "    {} --> {}", mermaid_id(&module.name), mermaid_id(dependency));
        }
    }
    text
}

/// `end` is a word of the language, and a dash begins an arrow; neither may be an identifier.
fn mermaid_id(name: &str) -> String {
    format!("m_{}", name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, calls: &[&str]) -> Module {
        Module {
            name: name.to_owned(),
            state: "declared".to_owned(),
            services: vec![format!("shop.v1.{name}")],
            dependencies: calls.iter().map(ToString::to_string).collect(),
            panics: 0,
        }
    }

    #[test]
    fn a_table_has_a_row_a_module_and_a_note_a_circle() {
        let modules = [module("cart", &["pricing"]), module("pricing", &["cart"])];
        let cycle = Cycle { modules: ["cart", "pricing", "cart"].map(str::to_owned).to_vec() };
        let text = table(&modules, &[cycle]);
        assert!(text.lines().any(|line| line.split_whitespace().eq(["cart", "shop.v1.cart", "pricing"])), "{text}");
        assert!(text.contains("in a circle: cart -> pricing -> cart"), "{text}");
    }

    #[test]
    fn mermaid_identifiers_survive_words_of_the_language() {
        let text = mermaid(&[module("end", &["front-desk"]), module("front-desk", &[])]);
        assert!(text.contains("m_end --> m_front_desk"), "{text}");
        assert!(text.contains("m_end[\"end\"]"), "{text}");
    }
}
