# Roles of service accounts: a pod gets what its account's work needs, by a token that AWS checks; no keys are kept anywhere.
# And those of people, who reach the ledger from outside: MLflow knows them by accounts of its own (dermaflow roles).
resource "aws_iam_openid_connect_provider" "cluster" {
  url            = aws_eks_cluster.main.identity[0].oidc[0].issuer
  client_id_list = ["sts.amazonaws.com"]
}

locals {
  issuer = trimprefix(aws_eks_cluster.main.identity[0].oidc[0].issuer, "https://")

  read   = ["s3:GetObject", "s3:GetObjectVersion"]
  append = concat(local.read, ["s3:GetObjectRetention", "s3:PutObject"])
  backup = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
  write  = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]

  # Service account => what it may do: with objects (actions, where), and which buckets it may list, and list by versions:
  # of what is made once (dermaflow/once.py) the first version counts.
  accounts = {
    dermaflow-steps = {
      list     = ["data", "artifacts"]
      versions = []
      objects = {
        ReadData       = { actions = local.read, on = ["${local.arn.data}/*"] }
        WriteArtifacts = { actions = local.write, on = ["${local.arn.artifacts}/*"] }
      }
    }
    dermaflow-register = {
      list     = ["ledger", "artifacts"]
      versions = ["ledger"]
      objects = {
        Append        = { actions = local.append, on = ["${local.arn.ledger}/*"] }
        ReadArtifacts = { actions = local.read, on = ["${local.arn.artifacts}/*"] }
      }
    }
    dermaflow-trigger = {
      list     = ["data", "artifacts"]
      versions = ["artifacts"]
      objects = {
        ReadData  = { actions = local.read, on = ["${local.arn.data}/*"] }
        WriteTurn = { actions = concat(local.read, ["s3:PutObject"]), on = ["${local.arn.artifacts}/trigger/*"] }
      }
    }
    mlflow = {
      list     = ["artifacts"]
      versions = []
      objects = {
        Artifacts = { actions = local.write, on = ["${local.arn.artifacts}/mlflow/*"] }
      }
    }
    maintenance = {
      list     = []
      versions = []
      objects = {
        Backups = { actions = local.backup, on = ["${local.arn.backups}/postgres/*"] }
      }
    }
  }

  # The same of people: an approver's decision is an entry of the ledger; an auditor reads it.
  people = {
    approver = {
      list     = ["ledger"]
      versions = ["ledger"]
      objects  = { Append = { actions = local.append, on = ["${local.arn.ledger}/*"] } }
    }
    auditor = {
      list     = ["ledger"]
      versions = ["ledger"]
      objects  = { Read = { actions = local.read, on = ["${local.arn.ledger}/*"] } }
    }
  }
}

resource "aws_iam_role" "account" {
  for_each = local.accounts

  name                 = "${var.name}-${each.key}"
  assume_role_policy   = data.aws_iam_policy_document.trust["${local.namespace}:${each.key}"].json
  max_session_duration = 43200 # a training's; the token is renewed on the way
}

resource "aws_iam_role_policy" "account" {
  for_each = local.accounts

  name   = "work"
  role   = aws_iam_role.account[each.key].id
  policy = data.aws_iam_policy_document.account[each.key].json
}

resource "aws_iam_role" "person" {
  for_each = { for role, who in var.people : role => who if length(who) > 0 }

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.person[each.key].json
}

resource "aws_iam_role_policy" "person" {
  for_each = aws_iam_role.person

  name   = "work"
  role   = each.value.id
  policy = data.aws_iam_policy_document.account[each.key].json
}

data "aws_iam_policy_document" "person" {
  for_each = var.people

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = each.value
    }
  }
}

data "aws_iam_policy_document" "account" {
  for_each = merge(local.accounts, local.people)

  dynamic "statement" {
    for_each = length(each.value.list) > 0 ? [each.value.list] : []

    content {
      sid       = "List"
      actions   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration"]
      resources = [for bucket in statement.value : local.arn[bucket]]
    }
  }

  dynamic "statement" {
    for_each = length(each.value.versions) > 0 ? [each.value.versions] : []

    content {
      sid       = "ListVersions"
      actions   = ["s3:ListBucketVersions"]
      resources = [for bucket in statement.value : local.arn[bucket]]
    }
  }

  dynamic "statement" {
    for_each = each.value.objects

    content {
      sid       = statement.key
      actions   = statement.value.actions
      resources = statement.value.on
    }
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = ["arn:${local.partition}:kms:${var.region}:${local.account}:key/*"]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }

    condition {
      test     = "ForAnyValue:StringEquals"
      variable = "kms:ResourceAliases"
      values   = ["alias/${var.name}"]
    }
  }
}

# The cluster's own: disks, the shared volume, and the autoscaler.
locals {
  system = {
    ebs        = "kube-system:ebs-csi-controller-sa"
    efs        = "kube-system:efs-csi-controller-sa"
    autoscaler = "kube-system:cluster-autoscaler"
  }
}

resource "aws_iam_role" "system" {
  for_each = local.system

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.value].json
}

resource "aws_iam_role_policy_attachment" "system" {
  for_each = { ebs = "AmazonEBSCSIDriverPolicy", efs = "AmazonEFSCSIDriverPolicy" }

  role       = aws_iam_role.system[each.key].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/${each.value}"
}

resource "aws_iam_role_policy" "disks" {
  name   = "key"
  role   = aws_iam_role.system["ebs"].id
  policy = data.aws_iam_policy_document.disks.json
}

data "aws_iam_policy_document" "disks" {
  statement {
    sid = "EncryptedDisks"
    actions = [
      "kms:Encrypt",
      "kms:Decrypt",
      "kms:ReEncryptFrom",
      "kms:ReEncryptTo",
      "kms:GenerateDataKeyWithoutPlaintext",
      "kms:DescribeKey",
    ]
    resources = [aws_kms_key.main.arn]
  }

  statement {
    sid       = "GrantsForDisks"
    actions   = ["kms:CreateGrant"]
    resources = [aws_kms_key.main.arn]

    condition {
      test     = "Bool"
      variable = "kms:GrantIsForAWSResource"
      values   = ["true"]
    }
  }
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "scale"
  role   = aws_iam_role.system["autoscaler"].id
  policy = data.aws_iam_policy_document.autoscaler.json
}

data "aws_iam_policy_document" "autoscaler" {
  # checkov:skip=CKV_AWS_356: these ask only, and AWS knows no resource for them
  statement {
    sid = "Look"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
      "eks:DescribeNodegroup",
    ]
    resources = ["*"]
  }

  # EKS tags the groups of its node groups with k8s.io/cluster-autoscaler/<cluster> and .../enabled by itself.
  statement {
    sid       = "Scale"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["arn:${local.partition}:autoscaling:${var.region}:${local.account}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}"
      values   = ["owned"]
    }
  }
}

data "aws_iam_policy_document" "trust" {
  for_each = toset(concat([for account in keys(local.accounts) : "${local.namespace}:${account}"], values(local.system)))

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.cluster.arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = ["system:serviceaccount:${each.value}"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}
