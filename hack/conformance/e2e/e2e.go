// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build conformance

// Package e2e is never built: it imports what build.sh builds of Kubernetes, and what only the
// test files of that import, so that go mod tidy keeps their modules.
package e2e

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"               // a program
	_ "go.yaml.in/yaml/v2"                             // of test/e2e's test files
	_ "k8s.io/component-base/version"                  // stamped
	_ "k8s.io/klog/v2"                                 // of test/e2e's test files
	_ "k8s.io/kubernetes/test/conformance/testdata"    // of test/e2e's test files
	_ "k8s.io/kubernetes/test/e2e"                     // the suite
	_ "k8s.io/kubernetes/test/e2e/apimachinery"        // specs
	_ "k8s.io/kubernetes/test/e2e/apps"                // specs
	_ "k8s.io/kubernetes/test/e2e/architecture"        // specs
	_ "k8s.io/kubernetes/test/e2e/auth"                // specs
	_ "k8s.io/kubernetes/test/e2e/autoscaling"         // specs
	_ "k8s.io/kubernetes/test/e2e/cloud"               // specs
	_ "k8s.io/kubernetes/test/e2e/common"              // specs
	_ "k8s.io/kubernetes/test/e2e/dra"                 // specs
	_ "k8s.io/kubernetes/test/e2e/instrumentation"     // specs
	_ "k8s.io/kubernetes/test/e2e/invariants"          // specs
	_ "k8s.io/kubernetes/test/e2e/invariants/logcheck" // of test/e2e's test files
	_ "k8s.io/kubernetes/test/e2e/kubectl"             // specs
	_ "k8s.io/kubernetes/test/e2e/lifecycle"           // specs
	_ "k8s.io/kubernetes/test/e2e/lifecycle/bootstrap" // specs
	_ "k8s.io/kubernetes/test/e2e/network"             // specs
	_ "k8s.io/kubernetes/test/e2e/node"                // specs
	_ "k8s.io/kubernetes/test/e2e/scheduling"          // specs
	_ "k8s.io/kubernetes/test/e2e/storage"             // specs
	_ "k8s.io/kubernetes/test/e2e/storage/csimock"     // specs
	_ "k8s.io/kubernetes/test/e2e/storage/external"    // specs
	_ "k8s.io/kubernetes/test/e2e/windows"             // specs
	_ "k8s.io/kubernetes/test/images/agnhost"          // a program
	_ "k8s.io/kubernetes/test/images/nonewprivs"       // a program
)
