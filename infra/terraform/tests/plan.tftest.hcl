# What a plan would make, without an account: `terraform test` (1.11 or newer) with keys that are none and answers given below.
provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

override_resource {
  target          = aws_eks_cluster.main
  override_during = plan
  values = {
    identity   = [{ oidc = [{ issuer = "https://oidc.example/id/1" }] }]
    vpc_config = { cluster_security_group_id = "sg-0123456789abcdef0" }
  }
}

override_resource {
  target          = aws_eks_node_group.gpu
  override_during = plan
  values          = { resources = [{ autoscaling_groups = [{ name = "gpu-nodes" }] }] }
}

variables {
  region             = "eu-central-1"
  name               = "my-dermaflow"
  vpc_id             = "vpc-0123456789abcdef0"
  private_subnet_ids = ["subnet-0123456789abcdef0", "subnet-0fedcba9876543210"]
  administrators     = ["arn:aws:iam::123456789012:role/administrators"]
  ledger_days        = 3650
  monthly_budget_usd = 1500
  budget_emails      = ["platform@example.org"]
  people             = { auditor = ["arn:aws:iam::123456789012:role/audit"] }
}

run "plan" {
  command = plan

  assert {
    condition     = aws_s3_bucket.all["ledger"].object_lock_enabled && !aws_s3_bucket.all["data"].object_lock_enabled
    error_message = "the ledger's bucket, and only that, is made with object lock"
  }

  assert {
    condition     = aws_s3_bucket_object_lock_configuration.ledger.rule[0].default_retention[0].mode == "COMPLIANCE"
    error_message = "the lock is COMPLIANCE unless something else is asked for"
  }

  assert {
    condition     = aws_s3_bucket_object_lock_configuration.ledger.rule[0].default_retention[0].days == 3650
    error_message = "entries are held for the days that were asked for"
  }

  assert {
    condition     = alltrue([for bucket in aws_s3_bucket_versioning.all : bucket.versioning_configuration[0].status == "Enabled"])
    error_message = "every bucket keeps versions"
  }

  assert {
    condition = length([for statement in jsondecode(data.aws_iam_policy_document.bucket["ledger"].json).Statement : statement if
    statement.Sid == "AppendOnly" && statement.Effect == "Deny" && try(statement.Condition.Null["s3:if-none-match"], "") == "true"]) == 1
    error_message = "a write to the ledger that could replace an entry is denied"
  }

  assert {
    condition     = alltrue([for policy in data.aws_iam_policy_document.bucket : strcontains(policy.json, "aws:SecureTransport")])
    error_message = "every bucket refuses requests without TLS"
  }

  assert {
    condition     = !strcontains(data.aws_iam_policy_document.account["dermaflow-register"].json, "Delete")
    error_message = "who appends to the ledger can delete nothing"
  }

  assert {
    condition = length(flatten([for statement in jsondecode(data.aws_iam_policy_document.account["dermaflow-steps"].json).Statement :
    [for action in flatten([statement.Action]) : action if statement.Sid == "ReadData" && !startswith(action, "s3:Get")]])) == 0
    error_message = "a step reads data and does not write it"
  }

  assert {
    condition = toset(flatten([for statement in jsondecode(data.aws_iam_policy_document.account["auditor"].json).Statement :
      statement.Action if startswith(flatten([statement.Action])[0], "s3:") && statement.Sid != "List"])) == toset([
    "s3:GetObject", "s3:GetObjectVersion", "s3:ListBucketVersions"])
    error_message = "an auditor reads the ledger in all its versions, and nothing else"
  }

  assert {
    condition     = !strcontains(data.aws_iam_policy_document.account["approver"].json, "Delete")
    error_message = "an approver can delete nothing"
  }

  assert {
    condition     = keys(aws_iam_role.person) == ["auditor"]
    error_message = "a role that nobody may take is not made"
  }

  assert {
    condition     = alltrue([for policy in data.aws_iam_policy_document.account : !strcontains(policy.json, "s3:*")])
    error_message = "no account has every right on a bucket"
  }

  assert {
    condition     = aws_eks_node_group.gpu.scaling_config[0].min_size == 0 && aws_eks_node_group.gpu.scaling_config[0].desired_size == 0
    error_message = "no GPU node runs while nothing trains"
  }

  assert {
    condition     = one(aws_eks_node_group.gpu.taint).key == "nvidia.com/gpu" && aws_eks_node_group.gpu.ami_type == "AL2023_x86_64_NVIDIA"
    error_message = "the GPU nodes are tainted, and have a driver"
  }

  assert {
    condition     = aws_autoscaling_group_tag.gpu["k8s.io/cluster-autoscaler/node-template/resources/nvidia.com/gpu"].tag[0].value == "1"
    error_message = "the autoscaler must know that a node it has not seen brings a GPU"
  }

  assert {
    condition     = !aws_eks_cluster.main.vpc_config[0].endpoint_public_access
    error_message = "without api_cidrs the cluster's API is private"
  }
}

run "everywhere_is_refused" {
  command = plan

  variables {
    api_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.api_cidrs]
}

run "one_subnet_is_refused" {
  command = plan

  variables {
    private_subnet_ids = ["subnet-0123456789abcdef0"]
  }

  expect_failures = [var.private_subnet_ids]
}

run "an_auditor_who_decides_is_refused" {
  command = plan

  variables {
    people = { approver = ["arn:aws:iam::123456789012:role/a"], auditor = ["arn:aws:iam::123456789012:role/a"] }
  }

  expect_failures = [var.people]
}
