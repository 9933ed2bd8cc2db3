//! The list: one line for each point, by verb, in the order in which a verb passes them.

/// A place between two effects of a verb.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Point {
    /// Verb and step, as a test names it: `run.stored`.
    pub name: &'static str,
    /// What has happened when it is passed.
    pub after: &'static str,
    /// Whether the work may fail there. Where it may not, a daemon can only be killed or
    /// delayed.
    pub fails: bool,
}

macro_rules! points {
    ($($constant:ident $name:literal $after:literal $([$sure:ident])?)*) => {
        impl Point {
            $(#[doc = concat!("`", $name, "`: ", $after, ".")]
            pub const $constant: Self = Self {
                name: $name,
                after: $after,
                fails: !points!(@sure $($sure)?),
            };)*
        }

        /// Every point there is.
        pub const POINTS: &[Point] = &[$(Point::$constant),*];
    };
    (@sure) => { false };
    (@sure sure) => { true };
}

// `[sure]` marks a point behind which nothing can fail the verb any more.
points! {
    PULL_CLAIMED "pull.claimed" "a pull is under way, and nothing of it is here"
    PULL_RESOLVED "pull.resolved" "the registry has said what a reference means"
    PULL_DOCUMENT_STORED "pull.document_stored" "an index or manifest is in the content store"
    PULL_CONFIG_STORED "pull.config_stored" "the config of an image is in the content store"
    PULL_LAYER_BEGUN "pull.layer_begun" "a layer has a directory, which is empty"
    PULL_BLOB_WRITTEN "pull.blob_written" "all bytes of a layer's blob are written, and not yet its name"
    PULL_BLOB_STORED "pull.blob_stored" "a layer's blob is in the content store"
    PULL_LAYER_UNPACKED "pull.layer_unpacked" "a layer is in its directory, its diff ID not yet compared"
    PULL_UNPACKED "pull.unpacked" "every layer is fetched and unpacked, and none is committed"
    PULL_LAYER_SETTLED "pull.layer_settled" "a layer's implied directories look as the layers below want it"
    PULL_LAYER_MOVED "pull.layer_moved" "a layer is among the committed ones, without its link"
    PULL_LAYER_COMMITTED "pull.layer_committed" "a layer is committed, and nothing is synced"
    PULL_COMMITTED "pull.committed" "every layer is committed, and nothing is synced"
    PULL_SYNCED "pull.synced" "everything of an image is durable, and no row names it"
    PULL_BLOBS_RECORDED "pull.blobs_recorded" "the rows of an image's blobs are stored"
    PULL_LAYER_RECORDED "pull.layer_recorded" "the row of a layer is stored"
    PULL_RECORDED "pull.recorded" "an image is stored, and nobody is told" [sure]

    RUN_CLAIMED "run.claimed" "a sandbox has its name, and nothing else"
    RUN_STORED "run.stored" "a sandbox is stored as being made"
    RUN_NAMESPACES "run.namespaces" "a sandbox has its namespaces, and only the daemon holds them"
    RUN_DIRECTORY "run.directory" "a sandbox has its directory"
    RUN_CGROUP "run.cgroup" "a sandbox has its cgroup"
    RUN_PREPARED "run.prepared" "namespaces, directory and cgroup are made, and nothing is in them"
    RUN_ADDRESS_LEASED "run.address_leased" "an address is leased, and no link has it"
    RUN_LINK_MADE "run.link_made" "a sandbox has its link, without an address"
    RUN_LINK_CONFIGURED "run.link_configured" "a sandbox reaches the bridge, and no port of the node leads to it"
    RUN_NETWORK_ATTACHED "run.network_attached" "a sandbox has its network, and no record says so"
    RUN_FILES_WRITTEN "run.files_written" "a sandbox has the files that its containers see"
    RUN_SHIM_EXECUTED "run.shim_executed" "the command that starts a shim runs"
    RUN_SHIM_LISTENS "run.shim_listens" "a shim listens, and nobody has connected"
    RUN_SHIM_SPAWNED "run.shim_spawned" "a shim answers, and has no sandbox"
    RUN_SHIM_CREATED "run.shim_created" "a shim has created its sandbox, and not started it"
    RUN_SHIM_STARTED "run.shim_started" "a shim has started its sandbox"
    RUN_MADE "run.made" "everything of a sandbox is made, and its record says it is being made"
    RUN_READY_STORED "run.ready_stored" "a sandbox is stored as ready, and not listed"
    RUN_PUBLISHED "run.published" "a sandbox is listed, and the client is not told" [sure]

    CREATE_CLAIMED "create.claimed" "a container has its name, and nothing else"
    CREATE_IMAGE_HELD "create.image_held" "the image of a container cannot be removed"
    CREATE_PLANNED "create.planned" "a container has its id and its specification, and nothing is made"
    CREATE_BUNDLE "create.bundle" "a container has its bundle, without a specification"
    CREATE_SPEC_WRITTEN "create.spec_written" "the specification of a container is in its bundle"
    CREATE_LOG_DIRECTORY "create.log_directory" "the directory of a container's log is there"
    CREATE_SNAPSHOT "create.snapshot" "a container has its snapshot, and no record names it"
    CREATE_STORED "create.stored" "a container is stored, and not listed"
    CREATE_PUBLISHED "create.published" "a container is listed, and the client is not told" [sure]

    START_TASK_RELEASED "start.task_released" "a shim has no task of a container that is to start"
    START_MOUNTS_KNOWN "start.mounts_known" "it is known how to mount the snapshot of a container"
    START_TASK_CREATED "start.task_created" "a shim has the task of a container, and its program is not executed"
    START_EXECUTED "start.executed" "the program of a container is executed, and no record says so"
    START_STORED "start.stored" "a container is stored as running, and not listed so"
    START_PUBLISHED "start.published" "a container is listed as running, and the client is not told" [sure]
    START_REFUSED "start.refused" "a container could not start, its task is gone, and no record says so"

    UPDATE_BEGUN "update.begun" "new limits of a container are stored as wanted, and the former are in force"
    UPDATE_IN_FORCE "update.in_force" "new limits of a container are in force, and no record says so"
    UPDATE_STORED "update.stored" "new limits of a container are stored, and not told" [sure]
    UPDATE_SANDBOX_STORED "update.sandbox_stored" "what a whole pod may use is stored, and not told"

    STOP_SIGNALLED "stop.signalled" "a container has got the signal that asks it to stop"
    STOP_KILLED "stop.killed" "a shim has killed a container"
    STOP_CGROUP_KILLED "stop.cgroup_killed" "what is in the cgroup of a container is killed"
    STOP_ENDED "stop.ended" "a container has ended, and no record says so"
    STOP_END_STORED "stop.end_stored" "the end of a container is stored, and not published"
    STOP_END_PUBLISHED "stop.end_published" "the end of a container is published, and the shim has its task" [sure]
    STOP_TASK_DELETED "stop.task_deleted" "a shim has forgotten the task of a container"
    STOP_MEMBERS_CLOSED "stop.members_closed" "a sandbox takes no more containers"
    STOP_NOT_READY_STORED "stop.not_ready_stored" "a sandbox is stored as not ready, and not listed so"
    STOP_CONTAINERS_HALTED "stop.containers_halted" "no container of a sandbox runs, and its shim does"
    STOP_SHIM_RELEASED "stop.shim_released" "a shim has let go of its sandbox, and may still run"
    STOP_SHIM_DEAD "stop.shim_dead" "a shim is dead, and its socket is there"
    STOP_SHIM_ENDED "stop.shim_ended" "a shim was ended, and the record of its sandbox names it"
    STOP_PORTS_REMOVED "stop.ports_removed" "no port of the node leads to a sandbox, which has its address"
    STOP_LINK_GONE "stop.link_gone" "the link of a sandbox is gone, and its address is leased"
    STOP_NETWORK_DETACHED "stop.network_detached" "a sandbox is off the network, and its record says it is not"
    STOP_CGROUP_REMOVED "stop.cgroup_removed" "a sandbox has no cgroup"
    STOP_PARTS_FORGOTTEN "stop.parts_forgotten" "shim and network are out of the record of a sandbox"
    STOP_STOPPED "stop.stopped" "a sandbox is stopped, and the client is not told" [sure]

    REMOVE_CONTAINER_ENDED "remove.container_ended" "a container that is to be removed does not run"
    REMOVE_CONTAINER_CGROUP "remove.container_cgroup" "a container has no cgroup"
    REMOVE_CONTAINER_FORGOTTEN "remove.container_forgotten" "no row names a container, which is still listed"
    REMOVE_CONTAINER_UNLISTED "remove.container_unlisted" "a container is gone for its clients, and its files are there" [sure]
    REMOVE_SNAPSHOT "remove.snapshot" "the snapshot of a removed container is gone, and its bundle is there"
    REMOVE_BUNDLE "remove.bundle" "a removed container has no files" [sure]
    REMOVE_SANDBOX_STOPPED "remove.sandbox_stopped" "a sandbox that is to be removed is stopped"
    REMOVE_CONTAINERS "remove.containers" "a sandbox that is to be removed has no containers"
    REMOVE_SANDBOX_DIRECTORY "remove.sandbox_directory" "a sandbox has no directory"
    REMOVE_SANDBOX_FORGOTTEN "remove.sandbox_forgotten" "no row names a sandbox, which is still listed"
    REMOVE_SANDBOX_UNLISTED "remove.sandbox_unlisted" "a sandbox is gone, and the client is not told" [sure]
    REMOVE_IMAGE_FOUND "remove.image_found" "an image that is to be removed is there"
    REMOVE_IMAGE_FORGOTTEN "remove.image_forgotten" "no row names an image, whose layers and blobs are there"

    EXEC_ENTERED "exec.entered" "a command is to be run, and nothing of it is made"
    EXEC_DIRECTORY "exec.directory" "a command has its directory, without FIFOs"
    EXEC_FIFOS "exec.fifos" "a command has its FIFOs, and nobody has opened them"
    EXEC_ADDED "exec.added" "a shim knows of a command, which does not run"
    EXEC_STARTED "exec.started" "a command runs"
    EXEC_ENDED "exec.ended" "a command has ended, and the client is not told"
    EXEC_DELETED "exec.deleted" "a shim has forgotten a command, whose FIFOs are there"
    EXEC_REMOVED "exec.removed" "nothing is left of a command" [sure]

    COLLECT_CLOSED "collect.closed" "a collection has begun, and no pull pins anything meanwhile"
    COLLECT_LAYER_FORGOTTEN "collect.layer_forgotten" "no row names a layer, which is committed"
    COLLECT_LAYER_MOVED "collect.layer_moved" "a layer is on its way out, and its link is there"
    COLLECT_LAYER_DETACHED "collect.layer_detached" "a layer has no name, and its files are there"
    COLLECT_BLOB_FORGOTTEN "collect.blob_forgotten" "no row names a blob, which is there"
    COLLECT_BLOB_DETACHED "collect.blob_detached" "a blob has no name, and its bytes are there"
    COLLECT_DETACHED "collect.detached" "what nothing needs has no name, and pulls go on"
    COLLECT_LAYER_EMPTIED "collect.layer_emptied" "the files of a layer are gone" [sure]

    RECOVER_OPENED "recover.opened" "the stores are open, and nothing is looked at"
    RECOVER_IMAGES_CHECKED "recover.images_checked" "images that are not whole are forgotten"
    RECOVER_LAYER_ROWS "recover.layer_rows" "every row of a layer names one that is there"
    RECOVER_LAYERS_SWEPT "recover.layers_swept" "layers that no row names are on their way out"
    RECOVER_BLOBS_SWEPT "recover.blobs_swept" "blobs that no row names are gone"
    RECOVER_IMAGES "recover.images" "images are as their rows say, and no sandbox is looked at"
    RECOVER_UNDO_SHIM "recover.undo_shim" "the shim of a sandbox that was being made is ended"
    RECOVER_UNDO_CGROUP "recover.undo_cgroup" "a sandbox that was being made has no cgroup"
    RECOVER_UNDO_DIRECTORY "recover.undo_directory" "a sandbox that was being made has no directory"
    RECOVER_UNDONE "recover.undone" "a sandbox that was being made is forgotten"
    RECOVER_LOSS_STORED "recover.loss_stored" "a sandbox is stored without what a restart did not find"
    RECOVER_START_STORED "recover.start_stored" "a container is stored as running that had been started unrecorded"
    RECOVER_CONTAINER_ADOPTED "recover.container_adopted" "a container has its driver again" [sure]
    RECOVER_SANDBOX_ADOPTED "recover.sandbox_adopted" "a sandbox has its driver again" [sure]
    RECOVER_ADOPTED "recover.adopted" "every sandbox and container of the store has its driver again"
    RECOVER_SETTLED "recover.settled" "what ended meanwhile is recorded, and nothing is swept"
    RECOVER_SHIMS_SWEPT "recover.shims_swept" "shims that no row names are ended"
    RECOVER_LINKS_SWEPT "recover.links_swept" "links, ports and leases that no row names are going"
    RECOVER_DIRECTORIES_SWEPT "recover.directories_swept" "directories that no row names are gone"
    RECOVER_SNAPSHOTS_SWEPT "recover.snapshots_swept" "snapshots that no row names are gone"
    RECOVER_CGROUPS_SWEPT "recover.cgroups_swept" "cgroups that no row names are gone"
    RECOVER_RECOVERED "recover.recovered" "the node is as the store says, and nobody is served" [sure]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different_and_say_their_verb() {
        let verbs: Vec<_> =
            "pull run create start update stop remove exec collect recover".split(' ').collect();
        let mut names: Vec<_> = POINTS.iter().map(|point| point.name).collect();
        for name in &names {
            let (verb, step) = name.split_once('.').unwrap();
            assert!(verbs.contains(&verb) && !step.is_empty(), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }
}
