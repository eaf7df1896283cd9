//! Why a module is where it is.

use super::{Facts, Standing, step, survey::Survey, targets::Targets};
use crate::{
    id::{ModuleName, NodeId},
    placement::state::{Hosting, Part},
};

/// Why a module is where it is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// The rules that hold, and who gave them: "kind = exclusive (registration)".
    pub(crate) rules: Vec<String>,
    /// Of each node, in the order of their names.
    pub(crate) nodes: Vec<Verdict>,
    /// Why it is not where it should be.
    pub(crate) problems: Vec<String>,
}

/// Whether a node hosts a module, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) node: NodeId,
    pub(crate) host: bool,
    /// Whether it could.
    pub(crate) eligible: bool,
    pub(crate) reason: String,
}

/// Explains one module; `None` where there is neither such a module nor a record of it.
pub(crate) fn explain(facts: &Facts<'_>, module: &ModuleName) -> Option<Explanation> {
    let survey = Survey::of(facts);
    let part = survey.part(module);
    let rules = survey.rules.get(module);
    if rules.is_none() && part.is_none() {
        return None;
    }
    let targets = Targets::find(&survey);
    let plan = step::steps(&survey, &targets);
    let unmet = plan.unplaced.into_iter().chain(plan.misplaced).filter(|unmet| unmet.module == *module);
    let nodes = facts.nodes.keys().map(|node| verdict(&survey, &targets, module, part, node)).collect();
    Some(Explanation {
        rules: rules.map(|rules| rules.lines()).unwrap_or_default(),
        nodes,
        problems: unmet.flat_map(|unmet| unmet.reasons).collect(),
    })
}

fn verdict(
    survey: &Survey<'_>,
    targets: &Targets<'_>,
    module: &ModuleName,
    part: Option<&Part>,
    node: &NodeId,
) -> Verdict {
    let gone = part.is_some_and(|part| match &part.hosting {
        Hosting::Exclusive { owner, .. } => survey.facts.has_ended(owner) && !survey.facts.runs(owner),
        Hosting::Replicated { .. } => false,
    });
    let recorded = part.is_some_and(|part| part.hosts().contains(&node));
    let host = recorded && !gone;
    let coming = part.and_then(Part::moving).is_some_and(|moving| moving.to.node == *node);
    let objection = targets.objection(survey, module, node);
    let eligible = objection.is_none();
    let belongs = targets.has(module, node) && !targets.is_homeless(module);
    let leaving = survey.facts.nodes.get(node).is_some_and(|facts| facts.standing != Standing::Ready);
    let reason = match (host, objection) {
        (true, None) if belongs => "it hosts it".to_owned(),
        (true, None) => "it hosts it until the hosts that are to have it serve".to_owned(),
        (true, Some(objection)) if belongs && !leaving => format!("it hosts it, although {objection}"),
        (true, Some(objection)) => format!("it hosts it for now: {objection}"),
        (false, _) if coming => "it is on its way there".to_owned(),
        (false, Some(objection)) if recorded => format!("it had it, and serves no more: {objection}"),
        (false, Some(objection)) => objection,
        (false, None) if belongs => "it is to host it".to_owned(),
        (false, None) => match targets.of(module).next() {
            Some(other) if survey.exclusive(module) => format!("it could; {other} has it, and it stays where it is"),
            _ => "it could; there are enough hosts".to_owned(),
        },
    };
    Verdict { node: node.clone(), host, eligible, reason }
}
