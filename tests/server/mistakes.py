"""Mistakes in a run's configuration, one each, and words of the message that must come before anything starts."""

FOLDER = ("-c", "data.name=folder")
MISTAKES: dict[tuple[str, ...], tuple[str, ...]] = {  # words after `python -m server` -> words of the message
    # unknown keys
    ("run", "-c", "run.round=3"): ("run.round is unknown", "run.rounds"),
    ("run", "-c", "train.batch_size=3"): ("train.batch_size is unknown", "train.batch-size"),
    ("run", "-c", "Train.LR=3"): ("Train.LR is unknown", "train.lr"),
    ("run", "-c", "lr=0.1"): ("lr is unknown", "train.lr"),
    ("run", "-c", "clients.rounds=3"): ("clients.rounds is unknown", "run.rounds"),
    ("run", "-c", "optimizer=adam"): ("optimizer is unknown", "server config"),
    ("run", "-c", "darkdistil.variant=parallel"): ("darkdistil.variant is unknown", "darkdistill.variant"),
    ("run", "-c", "fedprox.mu=0.1", "-c", "run.strategy=eefl"): ("fedprox.mu is 0.1", "eefl does not read", "fedprox"),
    ("run", "-c", "personal.batchnorm=averaged"): ("personal.batchnorm", "darkdistill does not read", "fedper"),
    # types
    ("run", "-c", "train.lr=abc"): ("train.lr is 'abc'", "a number"),
    ("run", "-c", "train.lr=0,1"): ("train.lr is '0,1'", "a number"),
    ("run", "-c", "train.lr="): ("train.lr is ''", "a number"),
    ("run", "-c", "run.rounds=2.5"): ("run.rounds is 2.5", "a whole number"),
    ("run", "-c", "run.rounds=ten"): ("run.rounds is 'ten'", "a whole number"),
    ("run", "-c", "run.tensorboard=yes"): ("run.tensorboard is 'yes'", "true or false"),
    ("run", "-c", "run.rounds"): ("-c run.rounds", "KEY=VALUE"),
    # bounds
    ("run", "-c", "run.rounds=0"): ("run.rounds is 0", "at least 1"),
    ("run", "-c", "train.lr=-1"): ("train.lr is -1", "at least 0"),
    ("run", "-c", "train.momentum=nan"): ("train.momentum is nan", "finite"),
    ("run", "-c", "train.lr=inf"): ("train.lr is inf", "finite"),
    ("run", "-c", "train.batch-size=1"): ("train.batch-size is 1", "at least 2"),
    ("run", "-c", "round.quorum=1.5"): ("round.quorum is 1.5", "at most 1"),
    ("run", "-c", "data.alpha=0"): ("data.alpha is 0", "at least 0.001"),
    ("run", "-c", "data.validation=1"): ("data.validation is 1", "below 1"),
    ("run", "-c", "run.metrics-port=70000"): ("run.metrics-port is 70000", "at most 65535"),
    ("run", "-c", "robust.trim=0.5"): ("robust.trim is 0.5", "below 0.5"),
    # names
    ("run", "-c", "data.partitioner=IID"): ("data.partitioner is 'IID'", "do you mean iid"),
    ("run", "-c", "data.name=cifar11"): ("data.name is 'cifar11'", "do you mean cifar10"),
    ("run", "-c", "network.name=resnet50"): ("network.name is 'resnet50'", "do you mean resnet18"),
    ("run", "-c", "run.strategy=FedAvrg"): ("run.strategy is 'FedAvrg'", "do you mean fedavg"),
    ("run", "-c", "clients.device=gpu"): ("clients.device is 'gpu'", "auto, cpu, cuda"),
    ("run", "-c", "objective.name=boost"): ("objective.name is 'boost'", "do you mean boosted"),
    ("run", "-c", "run.name=my run"): ("run.name is 'my run'", "letters, digits"),
    # lists
    ("run", "-c", "network.exits=2,five"): ("network.exits is '2,five'", "whole numbers"),
    ("run", "-c", "network.exits=2,,5"): ("network.exits is '2,,5'", "empty item"),
    ("run", "-c", "network.exits=2,2,5"): ("network.exits is '2,2,5'", "2 twice"),
    ("run", "-c", "network.exits=2,9"): ("network.exits is 2,9", "end with 5"),
    ("run", "-c", "network.tiers=1,3"): ("network.tiers is 1,3", "end with 4"),
    ("run", "-c", "data.mean=0.5;0.5"): ("data.mean is '0.5;0.5'", "comma-separated numbers"),
    ("run", "-c", "clients.mix=1,2"): ("clients.mix '1,2'", "4 tiers"),
    ("run", "-c", "clients.mix=some"): ("clients.mix 'some'", "equal, small, large"),
    ("run", "-c", "objective.exit-weights=1,1"): ("objective.exit-weights is 1.0,1.0", "4 exits"),
    ("run", "-c", "data.name=devices", "-c", "data.image-size=8", "-c", "data.classes=a, a"): ("data.classes", "twice"),
    # values that do not go together
    ("run", "-c", "clients.per-round=30"): ("clients.per-round is 30", "clients.count"),
    ("run", "-c", "clients.state=shared"): ("clients.state is 'shared'", "clients.store"),
    ("run", *FOLDER): ("data.root is missing", "folder of your samples"),
    ("run", "-c", "data.partitioner=natural"): ("data.column is missing", "data.partitioner"),
    ("run", "-c", "network.name=transformer4"): ("network.name 'transformer4' does not take images", "lenet"),
    ("run", "-c", "network.lora-rank=2"): ("network.lora-rank is 2", "no attention", "deit_tiny"),
    ("run", "-c", "network.pretrained=google/vit"): ("network.pretrained is 'google/vit'", "takes none", "deit_tiny"),
    ("run", "-c", "run.strategy=hetero_splitee", "-c", "network.exits=2,5"): ("network.exits", "leave"),
    ("run", "-c", "run.strategy=cafedistill", "-c", "robust.reject=3"): ("robust.reject", "'cafedistill'"),
    ("run", "-c", "run.strategy=distree"): ("distree.teacher is empty", "finished run"),
    ("run", "-c", "run.strategy=distree", "-c", "distree.teacher=README.md", "-c", "distree.widths=1"):
        ("distree.widths gives 1 widths", "distree.students is 2"),
    # files and folders
    ("run", *FOLDER, "-c", "data.root=/nowhere/at/all"): ("data.root is '/nowhere/at/all'", "no folder"),
    ("run", "-c", "network.name=deit_tiny", "-c", "network.pretrained=/nowhere/w.safetensors"):
        ("network.pretrained", "no readable file"),
    ("run", "-c", "run.strategy=distree", "-c", "distree.teacher=/nowhere"): ("distree.teacher is '/nowhere'", "model"),
    ("run", "-c", "run.root=/proc/runs"): ("run.root", "cannot be written", "another folder"),
    ("run", "--resume", "/nowhere"): ("/nowhere does not exist", "folder of a run"),
    ("run", "--preset", "demmo"): ("--preset demmo is unknown", "do you mean demo"),
    ("run", "--preset", "/tmp"): ("--preset /tmp is a folder", "TOML file"),
    # other verbs
    ("compare", "--methods", "eefl,fedprxo"): ("fedprxo", "do you mean fedprox"),
    ("compare", "--methods", "eefl, eefl"): ("--methods eefl, eefl", "once"),
    ("compare", "-c", "run.strategy=eefl"): ("run.strategy", "--methods"),
    ("submit", "-c", "data.partitioner=IID", "-c", "network.name=resnet50", "-c", "data.alpha=0"):
        ("data.partitioner is 'IID'", "network.name is 'resnet50'", "data.alpha is 0"),
    ("data", *FOLDER, "-c", "data.root=/nowhere/at/all"): ("data.root is '/nowhere/at/all'", "no folder"),
    ("data", "-c", "data.nam=digits"): ("data.nam is unknown", "data.name"),
    ("config", "-c", "run.round=3"): ("run.round is unknown", "run.rounds"),
}  # fmt: skip
