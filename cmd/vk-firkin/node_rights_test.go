// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clientgotesting "k8s.io/client-go/testing"
)

// A node says when it is known as somebody else: what it lacks, and what a thief would have.
func TestIdentityIsExamined(t *testing.T) {
	all := func(*authorizationv1.ResourceAttributes) bool { return true }
	none := func(*authorizationv1.ResourceAttributes) bool { return false }
	needed := func(at *authorizationv1.ResourceAttributes) bool {
		for _, r := range rightsOf("mac-1") {
			if r.at == *at {
				return r.need
			}
		}
		return false
	}
	for name, c := range map[string]struct {
		user    authenticationv1.UserInfo
		allowed func(*authorizationv1.ResourceAttributes) bool
		says    []string
		not     string
	}{
		"itself":          {user: authenticationv1.UserInfo{Username: "system:node:mac-1", Groups: []string{"system:authenticated", "system:nodes"}}},
		"another node":    {user: authenticationv1.UserInfo{Username: "system:node:mac-2", Groups: []string{"system:nodes"}}, says: []string{"--node-name mac-2", "vk-firkin join"}},
		"without a group": {user: authenticationv1.UserInfo{Username: "system:node:mac-1"}, says: []string{"system:nodes"}},
		"an administrator": {user: authenticationv1.UserInfo{Username: "kubernetes-admin"}, allowed: all,
			says: []string{`"kubernetes-admin"`, "read every Secret", "do anything", "vk-firkin join"}, not: "may not"},
		"somebody":    {user: authenticationv1.UserInfo{Username: "alice"}, allowed: none, says: []string{"may not register its Node", "renew its lease"}, not: "Secret"},
		"who is fine": {user: authenticationv1.UserInfo{Username: "macs"}, allowed: needed, says: []string{`"macs"`, "not as system:node:mac-1"}, not: "may"},
	} {
		client := fake.NewClientset()
		client.PrependReactor("create", "selfsubjectreviews", func(clientgotesting.Action) (bool, runtime.Object, error) {
			return true, &authenticationv1.SelfSubjectReview{Status: authenticationv1.SelfSubjectReviewStatus{UserInfo: c.user}}, nil
		})
		client.PrependReactor("create", "selfsubjectaccessreviews", func(a clientgotesting.Action) (bool, runtime.Object, error) {
			review := a.(clientgotesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
			review.Status.Allowed = c.allowed(review.Spec.ResourceAttributes)
			return true, review, nil
		})
		got, err := examineIdentity(t.Context(), client, "mac-1")
		if err != nil || (got == "") != (c.says == nil) || c.not != "" && strings.Contains(got, c.not) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		for _, says := range c.says {
			if !strings.Contains(got, says) {
				t.Errorf("%s: %q does not say %q", name, got, says)
			}
		}
	}
	client := fake.NewClientset()
	boom := errors.New("boom")
	client.PrependReactor("create", "selfsubjectreviews", func(clientgotesting.Action) (bool, runtime.Object, error) { return true, nil, boom })
	if _, err := examineIdentity(t.Context(), client, "mac-1"); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
}

// A user's own kubeconfig is no identity of a node: neither is this host said to have one, nor does a
// service get it.
func TestKubeconfigOfAUser(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("FIRKIN_STATE_DIR", t.TempDir())
	t.Setenv("KUBECONFIG", "node_rights_test.go") // which is there
	if f := lookAtHost(t.Context(), directories{StateDir: t.TempDir()}); f.kubeconfig != "" {
		t.Errorf("this host is said to have the identity %s", f.kubeconfig)
	}
	_, err := runRoot(t, "install", "--dry-run")
	if err == nil || !strings.Contains(err.Error(), "vk-firkin join") && !strings.Contains(err.Error(), "needs no root") {
		t.Errorf("install: %v", err)
	}
}
