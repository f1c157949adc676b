// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	rightsTimeout = 10 * time.Second
	rightsRetry   = 30 * time.Second
	nodeUser      = "system:node:"
	nodeGroup     = "system:nodes"
)

// right is something that the API server lets somebody do.
type right struct {
	what string
	need bool // a node needs it; else no node has it
	at   authorizationv1.ResourceAttributes
}

// rightsOf are what is asked of an identity that is no node's: what a node does most, and what makes a
// stolen host the whole cluster's harm.
func rightsOf(node string) []right {
	return []right{
		{"register its Node", true, authorizationv1.ResourceAttributes{Verb: "create", Resource: "nodes"}},
		{"write its Node's status", true, authorizationv1.ResourceAttributes{Verb: "patch", Resource: "nodes", Subresource: "status", Name: node}},
		{"renew its lease", true, authorizationv1.ResourceAttributes{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-node-lease", Name: node}},
		{"watch its pods", true, authorizationv1.ResourceAttributes{Verb: "watch", Resource: "pods"}},
		{"write their statuses", true, authorizationv1.ResourceAttributes{Verb: "patch", Resource: "pods", Subresource: "status"}},
		{"write its NodeLedger's status", true, authorizationv1.ResourceAttributes{Verb: "patch", Group: "firkin.dev", Resource: "nodeledgers", Subresource: "status", Name: node}},
		{"ask for its serving certificate", true, authorizationv1.ResourceAttributes{Verb: "create", Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}},
		{"read every Secret", false, authorizationv1.ResourceAttributes{Verb: "list", Resource: "secrets"}},
		{"run pods anywhere", false, authorizationv1.ResourceAttributes{Verb: "create", Resource: "pods"}},
		{"do anything", false, authorizationv1.ResourceAttributes{Verb: "*", Group: "*", Resource: "*"}},
	}
}

// judgeIdentity says what is wrong with as whom a node is known; empty when nothing is. allowed are the
// answers about rightsOf, which are asked for only of who is no node. Pure.
func judgeIdentity(node string, user authenticationv1.UserInfo, rights []right, allowed []bool) string {
	const remedy = "; `vk-firkin join` gets this host an identity of its own"
	if name, ok := strings.CutPrefix(user.Username, nodeUser); ok {
		switch {
		case name != node:
			return fmt.Sprintf("The credentials are those of node %s: the API server lets this one, %s, do nothing. Start it with --node-name %s, or with credentials of its own%s", name, node, name, remedy)
		case !slices.Contains(user.Groups, nodeGroup):
			return fmt.Sprintf("The credentials are those of %s without the group %s, by which the Node authorizer knows nodes%s", user.Username, nodeGroup, remedy)
		}
		return ""
	}
	var lacks, excess []string
	for i, r := range rights {
		if r.need && !allowed[i] {
			lacks = append(lacks, r.what)
		}
		if !r.need && allowed[i] {
			excess = append(excess, r.what)
		}
	}
	text := fmt.Sprintf("This node is known to the cluster as %q, not as %s%s", user.Username, nodeUser, node)
	if len(excess) > 0 {
		text += ": whoever gets hold of this host may " + strings.Join(excess, ", ") + ", which is for development alone"
	}
	if len(lacks) > 0 {
		text += "; it may not " + strings.Join(lacks, ", ")
	}
	return text + remedy
}

// examineIdentity asks the API server who this node is to it, and what that one may do.
func examineIdentity(ctx context.Context, client kubernetes.Interface, node string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, rightsTimeout)
	defer cancel()
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask who this node is: %w", err)
	}
	user := review.Status.UserInfo
	if strings.HasPrefix(user.Username, nodeUser) {
		return judgeIdentity(node, user, nil, nil), nil
	}
	rights := rightsOf(node)
	allowed := make([]bool, len(rights))
	for i, r := range rights {
		answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &r.at},
		}, metav1.CreateOptions{})
		if err != nil {
			return "", fmt.Errorf("ask whether this node may %s: %w", r.what, err)
		}
		allowed[i] = answer.Status.Allowed
	}
	return judgeIdentity(node, user, rights, allowed), nil
}

// tellIdentity warns of an identity that is not this node's own, as soon as the API server can be asked. It
// keeps no node from its work: the demonstration runs as the administrator, and pods go on meanwhile.
func (n *node) tellIdentity(ctx context.Context) {
	for {
		problem, err := examineIdentity(ctx, n.client, n.NodeName)
		switch {
		case err == nil && problem != "":
			n.logger.Warn(problem)
			return
		case err == nil, apierrors.IsNotFound(err), apierrors.IsForbidden(err): // a cluster that does not say
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rightsRetry):
		}
	}
}
